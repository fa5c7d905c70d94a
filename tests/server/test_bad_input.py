"""Damaged, oversized and hostile input, each with its named answer; one server takes it all and stays small."""

from __future__ import annotations

import base64
import gzip
import io
import json
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import nibabel
import numpy as np
import pytest
import requests
from PIL import Image

from medsight_core.errors import InputError
from medsight_core.imaging.volume import Volume
from medsight_core.wire.headers import canonical
from medsight_core.wire.volumes import MAGIC, chunks_of, digest_of, header_of, receive
from tests.inference.tiny import stack
from tests.server.hosting import hosted_apart

LIMIT: Final = 2**25
"""Bytes of voxels of the largest volume that this server takes."""

GROWTH: Final = 700 * 2**20
"""How much memory the server may have come to take: what a picture of the legal size needs while it is decoded."""

SECONDS: Final = 60
"""After which a request counts as hanging."""

CHAT: Final = "/v1/chat/completions"


@dataclass(frozen=True, kw_only=True)
class Apart:
    """A server in a process of its own."""

    url: str
    pid: int
    folder: Path
    small: int

    def send(self, method: str, path: str, **options: Any) -> requests.Response:
        with requests.Session() as session:
            session.trust_env = False
            return session.request(method, self.url + path, timeout=SECONDS, **options)


def most_memory(pid: int) -> int:
    """The most bytes that a process ever had in memory; 0 where the system does not tell."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apart]:
    folder = tmp_path_factory.mktemp("store")
    with hosted_apart(folder, limit_bytes=LIMIT, body_bytes=2**25) as (url, pid):
        yield Apart(url=url, pid=pid, folder=folder, small=most_memory(pid))


def scan() -> Volume:
    return stack(np.random.default_rng(0).integers(0, 1500, (4, 20, 24)).astype(np.int16))


def stored(server: Apart, volume: Volume) -> str:
    digest = digest_of(volume)
    assert server.send("PUT", f"/v1/volumes/{digest}", data=chunks_of(volume)).ok
    return digest


# --- chat ------------------------------------------------------------------------------------------------------------


def said(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], **more}


def about(url: Any, **more: Any) -> dict[str, Any]:
    return said([{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": url}}], **more)


def data(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def picture(**options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(5).integers(0, 255, (9, 11, 3), np.uint8)).save(
        file, options.pop("format", "PNG"), **options
    )
    return file.getvalue()


TEXT_BOMB: Final = b"a\0\0" + zlib.compress(bytes(2**27), 9)


def png_that_declares(width: int, height: int, pixels: bytes = b"", *, text: bytes = b"") -> bytes:
    """A PNG whose header promises any size, and whose compressed data may hold far more than there are bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *([chunk(b"zTXt", text)] if text else []), chunk(b"IDAT", pixels)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def gif_that_declares(width: int, height: int) -> bytes:
    small = picture(format="GIF")
    return small[:6] + struct.pack("<HH", width, height) + small[10:]


def raw(content: bytes) -> dict[str, Any]:
    return {"data": content, "headers": {"Content-Type": "application/json"}}


PLAIN: Final = json.dumps(about(data(picture())))

CHATS: Final[dict[str, tuple[dict[str, Any], int | tuple[int, ...], str | tuple[str, ...]]]] = {
    "62 http address": ({"json": about("http://169.254.169.254/latest/meta-data/")}, 400, "not_fetched"),
    "62 https address": ({"json": about("https://example.org/a.png")}, 400, "not_fetched"),
    "62 file address": ({"json": about("file:///etc/passwd")}, 400, "not_fetched"),
    "62 path": ({"json": about("/etc/passwd")}, 400, "not_fetched"),
    "62 data without base64": ({"json": about("data:image/png,abc")}, 400, "bad_picture"),
    "62 data of text": ({"json": about(data(b"hello", "text/html"))}, 400, "bad_picture"),
    "62 bad base64": ({"json": about("data:image/png;base64,@@@@")}, 400, "bad_picture"),
    "62 base64 of nothing": ({"json": about("data:image/png;base64,")}, 400, ("bad_picture", "pixels_unreadable")),
    "62 no picture inside": ({"json": about(data(b"\0" * 999))}, 400, "pixels_unreadable"),
    "62 a picture cut off": ({"json": about(data(picture()[:-40]))}, 400, "pixels_unreadable"),
    "62 an SVG": ({"json": about(data(b"<svg/>", "image/svg+xml"))}, 400, "pixels_unreadable"),
    "62 a TIFF": ({"json": about(data(picture(format="TIFF"), "image/tiff"))}, 400, "pixels_unreadable"),
    "62 a DICOM file": ({"json": about(data(b"\0" * 128 + b"DICM" + b"\0" * 99))}, 400, "pixels_unreadable"),
    "66 100,000 pixels wide": ({"json": about(data(png_that_declares(100_000, 100_000)))}, 413, "too_large"),
    "66 2^31 pixels wide": (
        {"json": about(data(png_that_declares(2**31 - 1, 1)))},
        (400, 413),
        ("too_large", "pixels_unreadable"),
    ),
    "66 a GIF of 65535^2": ({"json": about(data(gif_that_declares(65535, 65535)))}, 413, "too_large"),
    "66 a PNG that inflates to 600 MB": (
        {"json": about(data(png_that_declares(16, 16, zlib.compress(bytes(600 * 2**20), 9))))},
        (200, 400),
        ("", "pixels_unreadable"),
    ),
    "66 a text chunk that inflates": (
        {"json": about(data(png_that_declares(16, 16, zlib.compress(bytes(16 * 49)), text=TEXT_BOMB)))},
        (200, 400, 413),
        ("", "pixels_unreadable", "too_large"),
    ),
    "63 body of 40 MB": (raw(b'{"messages": "' + b"a" * (40 * 2**20) + b'"}'), 413, "too_large"),
    "63 depth of 50,000": (
        raw(b'{"messages": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
        400,
        ("bad_json", "bad_request"),
    ),
    "63 depth of 50,000 in the extension": (
        raw(PLAIN[:-1].encode() + b', "medsight": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}"),
        400,
        ("bad_json", "bad_request"),
    ),
    "63 NaN": (raw(PLAIN[:-1].encode() + b', "max_tokens": NaN}'), (400, 422), ("bad_json", "bad_request")),
    "63 NaN in the extension": (
        raw(PLAIN[:-1].encode() + b', "medsight": {"slice": NaN}}'),
        400,
        ("bad_json", "bad_request"),
    ),
    "63 10^21": (raw(PLAIN[:-1].encode() + b', "max_tokens": 1000000000000000000000}'), 422, "bad_request"),
    "63 a number of 10,000 digits": (
        raw(PLAIN[:-1].encode() + b', "max_tokens": ' + b"9" * 10_000 + b"}"),
        (400, 422),
        ("bad_json", "bad_request"),
    ),
    "63 10^400 in the extension": (
        raw(PLAIN[:-1].encode() + b', "medsight": {"slice": ' + b"1" * 400 + b"}}"),
        400,
        ("bad_json", "bad_request"),
    ),
    "63 bad UTF-8": (
        raw(b'{"messages": [{"role": "user", "content": "\xff\xfe\x80"}]}'),
        400,
        ("bad_json", "bad_request"),
    ),
    "63 a lone surrogate": (
        raw(b'{"messages": [{"role": "user", "content": "a\\ud800"}]}'),
        (400, 422),
        ("bad_request", "bad_json", "no_picture"),
    ),
    "63 a null character": ({"json": about(data(picture()) + "\0")}, 400, "bad_picture"),
    "63 10,000 messages": ({"json": {"messages": [{"role": "user", "content": "?"}] * 10_000}}, 422, "bad_request"),
    "63 no messages": ({"json": {"messages": []}}, 422, "bad_request"),
    "63 a text of a million": ({"json": said("a" * 10**6)}, 422, "bad_request"),
    "63 an empty body": (raw(b""), 422, "bad_request"),
    "63 a list": (raw(b"[]"), 422, "bad_request"),
    "63 null": (raw(b"null"), 422, "bad_request"),
    "63 not JSON": (raw(b"\x00\x01"), 400, "bad_json"),
    "63 UTF-16": (raw(PLAIN.encode("utf-16")), (200, 400), ("", "bad_json", "bad_request")),
    "63 no question": ({"json": {"messages": [{"role": "assistant", "content": "Hello."}]}}, 400, "no_question"),
    "no picture": ({"json": said("Where?")}, 400, "no_picture"),
    "a picture and a volume": (
        {"json": about(data(picture()), medsight={"volume": "a" * 64})},
        400,
        "several_pictures",
    ),
    "two pictures": (
        {"json": said([{"type": "image_url", "image_url": {"url": data(picture())}}] * 2)},
        400,
        "several_pictures",
    ),
    "a volume of no digest": ({"json": said("?", medsight={"volume": "../../etc/passwd"})}, 400, "bad_request"),
    "a volume in capitals": ({"json": said("?", medsight={"volume": "A" * 64})}, 400, "bad_request"),
    "a volume that is not here": (
        {"json": said("?", medsight={"volume": "a" * 64, "slice": 0})},
        409,
        "volume_unknown",
    ),
    "an unknown field of ours": ({"json": about(data(picture()), medsight={"slise": 0})}, 400, "bad_request"),
    "slice 7 of a picture": ({"json": about(data(picture()), medsight={"slice": 7})}, 400, "slice_out_of_range"),
    "slice -1": ({"json": about(data(picture()), medsight={"slice": -1})}, 400, "bad_request"),
    "slice true": ({"json": about(data(picture()), medsight={"slice": True})}, 400, "bad_request"),
    "300 prompts": (
        {"json": about(data(picture()), medsight={"prompts": [{"kind": "point", "points": [[1, 1, 0]]}] * 300})},
        400,
        "bad_request",
    ),
    "a prompt of infinity": (
        raw(PLAIN[:-1].encode() + b', "medsight": {"prompts": [{"kind": "point", "points": [[1e999, 0, 0]]}]}}'),
        400,
        ("bad_request", "bad_json"),
    ),
    "a mask of 10^9 rows": (
        {
            "json": about(
                data(picture()),
                medsight={
                    "prompts": [
                        {
                            "kind": "mask",
                            "mask": {"shape": [10**9, 10**9], "box": [[0, 10**9], [0, 10**9]], "data": "AAAA"},
                        }
                    ]
                },
            )
        },
        400,
        "bad_mask",
    ),
    "a mask that inflates": (
        {
            "json": about(
                data(picture()),
                medsight={
                    "prompts": [
                        {
                            "kind": "mask",
                            "mask": {
                                "shape": [9, 11],
                                "box": [[0, 9], [0, 11]],
                                "data": base64.b64encode(zlib.compress(bytes(2**16), 9)).decode(),
                            },
                        }
                    ]
                },
            )
        },
        400,
        "bad_mask",
    ),
    "an unknown plane": (
        {"json": about(data(picture()), medsight={"whole": {"plane": "diagonal"}})},
        400,
        "bad_request",
    ),
    "another model": ({"json": about(data(picture()), model="gpt-4o")}, 404, "model_not_found"),
}


def check(reply: requests.Response, status: int | tuple[int, ...], code: str | tuple[str, ...]) -> None:
    """That an answer is the named one, complete and without a trace of the code behind it."""
    assert reply.status_code in ((status,) if isinstance(status, int) else status), reply.text[:500]
    if reply.ok:
        return
    assert reply.headers["Content-Type"].startswith("application/problem+json")
    problem = reply.json()
    assert problem["code"] in ((code,) if isinstance(code, str) else code), problem
    assert problem["status"] == reply.status_code
    assert problem["detail"].endswith(".") and len(reply.content) < 2000
    for word in ("Traceback", 'File "', "site-packages", "medsight_core", ".py"):
        assert word not in reply.text


@pytest.mark.parametrize("case", CHATS)
def test_a_question(server: Apart, case: str) -> None:
    options, status, code = CHATS[case]
    check(server.send("POST", CHAT, **options), status, code)


# --- volumes ---------------------------------------------------------------------------------------------------------


def uploaded(head: dict[str, Any] | bytes, body: bytes = b"", *, codec: int = 0, length: int | None = None) -> bytes:
    header = head if isinstance(head, bytes) else canonical(head)
    return MAGIC + bytes([codec]) + (len(header) if length is None else length).to_bytes(4, "little") + header + body


def piece(content: bytes) -> bytes:
    packed = zlib.compress(content, 1)
    return len(packed).to_bytes(4, "little") + packed


def with_header(**changes: Any) -> bytes:
    """The upload of `scan`, its header changed."""
    return uploaded({**header_of(scan()), **changes}, whole_body())


def whole_body() -> bytes:
    volume = scan()
    return b"".join(chunks_of(volume))[len(MAGIC) + 5 + len(canonical(header_of(volume))) :]


FLOATS: Final = np.full((4, 20, 24), np.nan, "<f4").tobytes()

UPLOADS: Final[dict[str, tuple[Callable[[], bytes], int | tuple[int, ...], str | tuple[str, ...]]]] = {
    "65 the hash of another": (lambda: b"".join(chunks_of(scan())), 400, "wrong_digest"),
    "65 half": (lambda: b"".join(chunks_of(scan()))[:-200], 400, "truncated"),
    "65 nothing": (lambda: b"", 400, ("truncated", "bad_volume")),
    "65 more than the whole": (lambda: b"".join(chunks_of(scan())) + b"x", 400, "bad_volume"),
    "random bytes": (lambda: np.random.default_rng(0).bytes(5000), 400, "bad_volume"),
    "a DICOM file": (lambda: b"\0" * 128 + b"DICM" + b"\0" * 999, 400, "bad_volume"),
    "a web page": (lambda: b"<html>" * 99, 400, "bad_volume"),
    "an unknown codec": (lambda: uploaded(header_of(scan()), whole_body(), codec=9), 400, "unknown_codec"),
    "a header of 4 GB": (lambda: uploaded(b"{}", length=2**32 - 1), 400, "bad_volume"),
    "a header of nothing": (lambda: uploaded(b""), 400, "bad_volume"),
    "a header that is no JSON": (lambda: uploaded(b"{" * 99), 400, "bad_volume"),
    "a header 50,000 deep": (lambda: uploaded(b"[" * 50_000), 400, "bad_volume"),
    "a header with a name": (lambda: with_header(PatientName="x"), 400, "bad_volume"),
    "a header without dtype": (lambda: with_header(dtype=None), 400, ("bad_volume", "bad_dtype")),
    "64 float16": (lambda: with_header(dtype="float16"), 400, "bad_dtype"),
    "64 big endian": (lambda: with_header(dtype=">i2"), 400, "bad_dtype"),
    "64 objects": (lambda: with_header(dtype="object"), 400, "bad_dtype"),
    "64 float64": (lambda: with_header(dtype="float64"), 400, "bad_dtype"),
    "64 NaN voxels": (
        lambda: uploaded({**header_of(scan()), "dtype": "float32"}, piece_shuffled(FLOATS, 4)),
        400,
        "not_finite",
    ),
    "10^9 slices": (lambda: with_header(shape=[10**9, 20, 24]), (400, 413), ("too_large", "bad_geometry")),
    "65535 x 65535": (lambda: with_header(shape=[4, 65535, 65535]), 413, "too_large"),
    "10^21 slices": (lambda: with_header(shape=[10**21, 20, 24]), 400, "bad_volume"),
    "-1 slices": (lambda: with_header(shape=[-1, 20, 24]), 400, "bad_volume"),
    "no axes": (lambda: with_header(shape=[]), 400, ("bad_volume", "bad_shape")),
    "five axes": (lambda: with_header(shape=[1, 1, 1, 1, 1]), 400, "bad_volume"),
    "four channels": (lambda: with_header(shape=[4, 20, 24, 4]), 400, ("bad_shape", "bad_dtype")),
    "just over the limit": (lambda: with_header(shape=[17, 1024, 1024]), 413, "too_large"),
    "NaN spacing": (lambda: uploaded(canonical(header_of(scan())).replace(b"3.2", b"NaN", 1)), 400, "bad_volume"),
    "spacing 0": (lambda: with_header(grids=[[[0, 1, 1], [1, 0, 0, 0, 1, 0, 0, 0, 1], True]]), 400, "bad_geometry"),
    "directions in one plane": (
        lambda: with_header(grids=[[[1, 1, 1], [1, 0, 0, 1, 0, 0, 0, 0, 1], True]]),
        400,
        "bad_geometry",
    ),
    "a grid that is not there": (lambda: with_header(slices=[[7, 0, 0, 0]] * 4), 400, "bad_geometry"),
    "too few places": (lambda: with_header(slices=[[0, 0, 0, 0]]), 400, "bad_geometry"),
    "an unknown modality": (lambda: with_header(modality="Müller"), 400, "bad_volume"),
    "a sentence as problem": (lambda: with_header(frame=None, problem="Anna Müller"), 400, "bad_volume"),
    "pieces that inflate": (lambda: uploaded(header_of(scan()), piece(bytes(30 * 2**20))), 400, "bad_volume"),
    "a piece of 4 GB": (
        lambda: uploaded(header_of(scan()), b"\xff\xff\xff\xff" + b"x" * 99),
        400,
        ("bad_volume", "truncated"),
    ),
    "pieces of nothing": (lambda: uploaded(header_of(scan()), b"\0\0\0\0" * 99), 400, "bad_volume"),
    "damaged pieces": (
        lambda: uploaded(header_of(scan()), whole_body()[:40] + b"\0" * 300),
        400,
        ("bad_volume", "truncated"),
    ),
    "blosc2 of zlib's bytes": (
        lambda: uploaded(header_of(scan()), whole_body(), codec=1),
        400,
        ("bad_volume", "unknown_codec"),
    ),
}


def piece_shuffled(content: bytes, item: int) -> bytes:
    return piece(np.frombuffer(content, np.uint8).reshape(-1, item).T.tobytes())


@pytest.mark.parametrize("case", UPLOADS)
def test_a_volume(server: Apart, case: str) -> None:
    make, status, code = UPLOADS[case]
    before = sorted(server.folder.iterdir())
    check(server.send("PUT", f"/v1/volumes/{'0' * 64}", data=make()), status, code)
    assert sorted(server.folder.iterdir()) == before  # nothing is left of it
    assert server.send("HEAD", f"/v1/volumes/{'0' * 64}").status_code == 404


@pytest.mark.parametrize(
    "digest", ["..%2F..%2Fetc%2Fpasswd", "A" * 64, "0" * 63, "0" * 65, "０" * 64, "%00" * 64, "0" * 64 + "%0a"]
)
def test_a_name_that_is_no_digest(server: Apart, digest: str) -> None:
    reply = server.send("PUT", f"/v1/volumes/{digest}", data=b"x")
    check(reply, (400, 404, 405), ("bad_request", "not_found", "method_not_allowed"))


def test_an_upload_that_breaks_off_leaves_nothing(server: Apart) -> None:
    body = b"".join(chunks_of(scan()))
    before = sorted(server.folder.iterdir())
    address = urlsplit(server.url)
    digest = digest_of(scan())
    with socket.create_connection((address.hostname, address.port), timeout=10) as line:
        head = f"PUT /v1/volumes/{digest} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {len(body)}\r\n\r\n"
        line.sendall(head.encode() + body[: len(body) // 2])
        time.sleep(0.2)
    end = time.monotonic() + 30
    while sorted(server.folder.iterdir()) != before and time.monotonic() < end:
        time.sleep(0.05)
    assert sorted(server.folder.iterdir()) == before
    assert server.send("HEAD", f"/v1/volumes/{digest}").status_code == 404


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({}, 400, "nothing_asked"),
        ({"slice": 99, "text": "liver"}, 400, "slice_out_of_range"),
        ({"strokes": [{"slice": 99, "kind": "point", "points": [[0, 0, 0]]}]}, 400, "slice_out_of_range"),
        ({"strokes": [{"slice": 0, "kind": "point", "points": []}]}, 400, "bad_prompt"),
        ({"strokes": [{"slice": 0, "kind": "star", "points": [[0, 0, 0]]}]}, 400, "bad_request"),
        ({"strokes": [{"slice": 0, "kind": "point", "points": [[10**21, 0, 0]]}]}, 400, "bad_request"),
        ({"strokes": [{"slice": 0, "kind": "point", "points": [["0", 0, 0]]}]}, 400, "bad_request"),
        (
            {
                "strokes": [
                    {"slice": 0, "kind": "mask", "mask": {"shape": [20, 24], "box": [[0, 0], [0, 0]], "data": ""}}
                ]
            },
            400,
            "bad_prompt",
        ),
        (
            {
                "strokes": [
                    {
                        "slice": 0,
                        "kind": "mask",
                        "mask": {"shape": [24, 20], "box": [[0, 1], [0, 1]], "data": "eJxrAAAAgQCB"},
                    }
                ]
            },
            400,
            "bad_mask",
        ),
        ({"strokes": {"a": 1}, "text": "x"}, 400, "bad_request"),
        ({"text": "x" * 10**6}, 400, "bad_request"),
        ({"text": "x", "whole": 1}, 400, "bad_request"),
        ({"text": "x", "whole": True, "slices": [0, 10**12]}, 400, "bad_request"),
        ({"text": "x", "colour": "red"}, 400, "bad_request"),
    ],
    ids=str,
)
def test_a_request_to_segment(server: Apart, fields: dict[str, Any], status: int, code: str) -> None:
    digest = stored(server, scan())
    check(server.send("POST", "/v1/segment", json={"volume": digest, "slice": 0, **fields}), status, code)


def test_a_volume_that_is_not_here(server: Apart) -> None:
    check(server.send("POST", "/v1/segment", json={"volume": "a" * 64, "slice": 0, "text": "x"}), 409, "volume_unknown")
    check(server.send("GET", "/v1/masks/nothing.nii.gz"), 404, "mask_unknown")


# --- 64: what a client may hold in memory ----------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["fortran", "big endian", "not contiguous", "read only"])
def test_any_layout_of_memory_is_the_same_volume(order: str) -> None:
    plain = scan()
    arrays = {
        "fortran": np.asfortranarray(plain.array),
        "big endian": plain.array.astype(">i2"),
        "not contiguous": np.repeat(plain.array, 2, axis=2)[:, :, ::2],
        "read only": plain.array.copy(),
    }
    arrays["read only"].flags.writeable = False
    other = replace(plain, array=arrays[order])
    assert digest_of(other) == digest_of(plain)
    arrived = receive(chunks_of(other), digest=digest_of(plain), limit_bytes=LIMIT)
    np.testing.assert_array_equal(arrived.array, plain.array)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int32", "uint16", "bool", "complex64"])
def test_other_types_are_never_sent(dtype: str) -> None:
    with pytest.raises(InputError) as caught:
        digest_of(replace(scan(), array=scan().array.astype(dtype)))
    assert caught.value.code == "bad_dtype"


# --- NIfTI, as clients of MONAI Label send it ------------------------------------------------------------------------


def header_like(shape: tuple[int, ...] = (12, 10, 6), affine: Any = None, **fields: Any) -> bytearray:
    image = nibabel.Nifti1Image(np.zeros((1, 1, 1), np.int16), np.diag([0.7, 0.8, 3, 1]) if affine is None else affine)
    header = image.header
    header.set_data_shape(shape)
    header["vox_offset"] = 352
    if affine is not None:
        header.set_sform(affine, code=1)
        header["qform_code"] = 0
    for name, value in fields.items():
        header[name] = value
    return bytearray(header.binaryblock + b"\0\0\0\0")


VOXELS: Final = np.arange(720, dtype="<i2").tobytes()
SINGULAR: Final = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])

NIFTIS: Final[dict[str, tuple[Callable[[], bytes], int | tuple[int, ...], str | tuple[str, ...]]]] = {
    "47 dims of 32767^3": (lambda: bytes(header_like((32767, 32767, 32767))) + VOXELS, 413, "too_large"),
    "47 dims of 32767^3, compressed": (
        lambda: gzip.compress(bytes(header_like((32767,) * 3)) + VOXELS),
        413,
        "too_large",
    ),
    "48 gzip bomb of 1 GB": (
        lambda: gzip.compress(bytes(header_like((1024, 1024, 512))) + bytes(2**27), 9),
        413,
        "too_large",
    ),
    "48 gzip bomb behind the data": (
        lambda: gzip.compress(bytes(header_like()) + VOXELS + bytes(2**28), 9),
        200,
        "",
    ),
    "49 NaN voxel size": (
        lambda: bytes(header_like(pixdim=[1, np.nan, 1, 1, 0, 0, 0, 0])) + VOXELS,
        400,
        "bad_geometry",
    ),
    "50 truncated": (lambda: bytes(header_like()) + VOXELS[:-100], 400, "truncated"),
    "50 truncated, compressed": (lambda: gzip.compress(bytes(header_like()) + VOXELS)[:-80], 400, "truncated"),
    "50 a header cut off": (lambda: bytes(header_like())[:200], 400, "truncated"),
    "51 singular": (lambda: bytes(header_like(affine=SINGULAR)) + VOXELS, 400, "bad_geometry"),
    "an infinite affine": (
        lambda: bytes(header_like(srow_x=[np.inf, 0, 0, 0], sform_code=1)) + VOXELS,
        400,
        "bad_geometry",
    ),
    "an infinite slope": (lambda: bytes(header_like(scl_slope=np.inf)) + VOXELS, 400, "bad_rescale"),
    "complex numbers": (lambda: bytes(header_like(datatype=32, bitpix=64)) + VOXELS * 9, 400, "unsupported_object"),
    "an unknown type": (lambda: bytes(header_like(datatype=7777)) + VOXELS, 400, "bad_header"),
    "no axes": (lambda: bytes(header_like(dim=[0, 1, 1, 1, 1, 1, 1, 1])) + VOXELS, 400, "bad_header"),
    "negative axes": (lambda: bytes(header_like(dim=[3, -5, 10, 6, 1, 1, 1, 1])) + VOXELS, 400, "bad_header"),
    "time points": (lambda: bytes(header_like((12, 10, 3, 2))) + VOXELS, 400, "several_volumes"),
    "data at byte 2^30": (lambda: bytes(header_like(vox_offset=2.0**30)) + VOXELS, 400, ("truncated", "bad_header")),
    "data at byte -5": (lambda: bytes(header_like(vox_offset=-5)) + VOXELS, 400, ("bad_header", "truncated")),
    "empty": (lambda: b"", 400, "not_nifti"),
    "a picture": (picture, 400, "not_nifti"),
    "a pickle": (lambda: b"\x80\x04\x95" + b"x" * 99, 400, "not_nifti"),
    "an archive": (lambda: b"PK\x03\x04" + b"x" * 999, 400, "not_nifti"),
    "an NRRD": (lambda: b"NRRD0004\ntype: short\n", 400, "not_nifti"),
    "gzip of a web page": (lambda: gzip.compress(b"<html>" * 99), 400, "not_nifti"),
    "gzip within gzip": (lambda: gzip.compress(gzip.compress(bytes(header_like()) + VOXELS)), 400, "not_nifti"),
    "half of a pair": (lambda: bytes(header_like(magic=b"ni1\0")) + VOXELS, 400, "not_nifti"),
}


@pytest.mark.parametrize("case", NIFTIS)
def test_an_image_for_a_session(server: Apart, case: str) -> None:
    make, status, code = NIFTIS[case]
    reply = server.send("PUT", "/session/", files={"files": ("../../etc/passwd.nii.gz", make())})
    check(reply, status, code)
    assert "passwd" not in reply.text


def test_not_one_image(server: Apart) -> None:
    check(server.send("PUT", "/session/", files=[("files", ("a", b"x"))] * 2), 400, "several_files")
    check(
        server.send("PUT", "/session/", data=b"x", headers={"Content-Type": "multipart/form-data"}),
        (400, 422),
        "bad_request",
    )
    check(server.send("PUT", "/session/", data={"files": "x"}), 422, "bad_request")
    broken = {"Content-Type": "multipart/form-data; boundary=a"}
    check(server.send("PUT", "/session/", data=b"--a\r\nnonsense", headers=broken), (400, 422), "bad_request")


def test_a_megabyte_of_params(server: Apart) -> None:
    files = {"params": (None, "[" * (3 * 2**20))}
    check(
        server.send("POST", "/infer/medsight-named", params={"image": "x"}, files=files),
        (400, 413, 422),
        ("bad_request", "too_large", "bad_json"),
    )


# --- in the end ------------------------------------------------------------------------------------------------------


def test_the_server_is_as_well_as_before_and_has_never_been_large(server: Apart) -> None:
    """Behind all of the above in this file, or by itself."""
    digest = stored(server, scan())
    good = said("What is bright?", medsight={"volume": digest, "slice": 1})
    assert server.send("POST", CHAT, json=good).json()["choices"][0]["message"]["content"] == "Something bright."
    assert most_memory(server.pid) - server.small < GROWTH
