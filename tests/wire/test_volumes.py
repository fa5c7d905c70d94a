"""Volumes cross the wire bit for bit, tell nothing of a person, and no stranger's bytes do harm."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsight_core.errors import InputError, MedSightError
from medsight_core.geometry import Frame
from medsight_core.imaging.volume import Source, Volume, open_volume
from medsight_core.imaging.windowing import display
from medsight_core.wire import volumes as wire
from medsight_core.wire.codecs import CODECS, Codec, best_codec, packed_limit, usable_codecs
from medsight_core.wire.headers import DICOM_MODALITIES, MODALITIES, PHOTOMETRICS, canonical
from medsight_core.wire.volumes import MAGIC, PIECE_BYTES, begin, chunks_of, digest_of, header_of, receive
from tests.wire.scans import LIMIT, SECRET, scan, volumes

codecs = st.sampled_from(usable_codecs())


def assert_same_frame(one: Frame, other: Frame) -> None:
    assert one.shape == other.shape and one.physical == other.physical
    for name in ("origin", "spacing", "direction"):
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes()


def assert_same_for_a_model(one: Volume, other: Volume) -> None:
    """All that a model, or a mask's way back, can depend on."""
    assert one.array.dtype == other.array.dtype and one.array.shape == other.array.shape
    assert np.ascontiguousarray(one.array).tobytes() == np.ascontiguousarray(other.array).tobytes()
    for mine, yours in zip(one.slice_frames, other.slice_frames, strict=True):
        assert_same_frame(mine, yours)
    assert (one.frame is None) == (other.frame is None)
    if one.frame is not None and other.frame is not None:
        assert_same_frame(one.frame, other.frame)
    assert (one.modality, one.has_place) == (other.modality, other.has_place)
    for k in range(one.n_slices):
        with np.errstate(all="ignore"):  # voxels that no scan has overflow on their way to grey, in both alike
            assert display(one, k).tobytes() == display(other, k).tobytes()


def cut(body: bytes, size: int) -> Iterator[bytes]:
    return (body[start : start + size] for start in range(0, len(body), size))


@settings(deadline=None)
@given(volumes(), codecs, st.integers(1, 300))
def test_a_volume_is_the_same_to_a_model_after_its_way(volume: Volume, codec: Codec, size: int) -> None:
    body = b"".join(chunks_of(volume, codec=codec))
    got = receive(cut(body, size), digest=digest_of(volume), limit_bytes=LIMIT)
    assert_same_for_a_model(volume, got)
    assert header_of(got) == header_of(volume) and digest_of(got) == digest_of(volume)
    if volume.problem is not None:
        with pytest.raises(InputError) as caught:
            got.require_frame()
        assert caught.value.code == volume.problem.code


@settings(deadline=None)
@given(volumes())
def test_nothing_that_names_a_person_is_told(volume: Volume) -> None:
    told = json.dumps(header_of(volume))
    assert SECRET not in told and "1.2.826" not in told
    got = receive(chunks_of(volume), digest=None, limit_bytes=LIMIT)
    assert SECRET not in repr(got.source) and "1.2.826" not in repr(got.source)
    assert got.warnings == () and got.source.paths == () and SECRET not in str(got.problem)


def test_the_header_holds_what_is_allowed_and_nothing_else() -> None:
    assert set(header_of(scan())) == {
        "dtype", "shape", "grids", "slices", "frame", "problem", "modality", "kind", "dicom_modality", "photometric",
        "window", "placed",
    }  # fmt: skip


@settings(deadline=None)
@given(st.text(max_size=20))
def test_words_that_a_file_may_choose_pass_only_where_they_are_known(word: str) -> None:
    source = Source(kind="dicom", paths=(), dicom_modality=word, photometric=word)
    header = header_of(scan(modality=word, source=source))
    assert header["modality"] in MODALITIES
    assert header["dicom_modality"] in (*DICOM_MODALITIES, None)
    assert header["photometric"] in (*PHOTOMETRICS, None)


def test_the_name_is_the_hash_of_header_and_voxels() -> None:
    volume = scan()
    header = canonical(header_of(volume))
    told = b"MedSIGHT volume\0" + len(header).to_bytes(4, "little") + header
    assert digest_of(volume) == hashlib.sha256(told + volume.array.tobytes()).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        {"array": scan().array + np.int16(1)},
        {"array": scan().array.astype(np.float32)},
        {"modality": "MR"},
        {"source": Source(kind="nrrd", paths=())},
        {"source": Source(kind="nifti", paths=(), photometric="MONOCHROME1")},
        {"source": Source(kind="nifti", paths=(), window=(40.0, 400.0))},
    ],
)
def test_what_a_model_sees_is_in_the_name(change: dict) -> None:
    assert digest_of(scan(**change)) != digest_of(scan())


def test_where_a_scan_came_from_is_not_in_the_name() -> None:
    other = Source(kind="nifti", paths=(Path("elsewhere.nii"),), description=SECRET, series_uid="1.2.3")
    assert digest_of(scan(source=other, warnings=("Mind the gap.",))) == digest_of(scan())


@pytest.mark.parametrize("codec", usable_codecs())
@pytest.mark.parametrize(
    "view",
    [
        lambda array: array.astype(">i2"),
        lambda array: np.asfortranarray(array),
        lambda array: array[::-1, :, ::-1],
        lambda array: np.repeat(array, 2, axis=2)[:, :, ::2],
    ],
)
def test_how_voxels_lie_in_memory_does_not_matter(view, codec: Codec) -> None:
    plain = scan()
    volume = replace(plain, array=view(plain.array))
    got = receive(chunks_of(volume, codec=codec), digest=digest_of(volume), limit_bytes=LIMIT)
    assert (got.array == volume.array).all() and got.array.dtype == np.dtype("<i2")


@pytest.mark.parametrize("codec", usable_codecs())
@pytest.mark.parametrize("fill", ["noise", "zeros", "scan"])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_large_volumes_cross_in_pieces(codec: Codec, fill: str, dtype: type) -> None:
    shape = (3, 1024, 1500)
    array = np.zeros(shape, dtype)
    if fill == "noise":
        array = np.random.default_rng(0).integers(-(2**15), 2**15, shape).astype(dtype)
    if fill == "scan":
        array = np.add.outer(np.arange(3), np.add.outer(np.arange(1024), np.arange(1500))).astype(dtype)
    frame = Frame.of_pixels(shape)
    volume = scan(shape, array=array, frame=frame, slice_frames=tuple(frame.slice(k) for k in range(3)))
    parts = list(chunks_of(volume, codec=codec))
    assert len(parts) == 1 + -(-array.nbytes // PIECE_BYTES) >= 3
    assert max(map(len, parts)) <= 4 + packed_limit(PIECE_BYTES)
    most = begin(b"".join(parts)[:4000], limit_bytes=array.nbytes)
    assert most is not None and sum(map(len, parts)) <= most
    got = receive(parts, digest=digest_of(volume), limit_bytes=array.nbytes)
    assert (got.array == array).all()


def test_the_best_codec_of_both_is_taken() -> None:
    assert best_codec("zlib") == "zlib"
    assert best_codec("") == "zlib"
    assert best_codec("lz77, blosc2,zlib") == usable_codecs()[0]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"array": np.zeros((3, 8, 6), np.float64)}, "bad_dtype"),
        ({"array": np.zeros((3, 8, 6), np.float16)}, "bad_dtype"),
        ({"array": np.zeros((3, 8, 6), np.uint16)}, "bad_dtype"),
        ({"array": np.zeros((3, 8, 6, 3), np.int16)}, "bad_dtype"),
        ({"array": np.broadcast_to(np.int16(0), (3, 8, 6))}, None),
    ],
)
def test_what_cannot_be_sent_is_refused_here(change: dict, code: str | None) -> None:
    volume = scan(**change)
    if code is None:
        receive(chunks_of(volume), digest=digest_of(volume), limit_bytes=LIMIT)
        return
    for use in (digest_of, chunks_of, header_of):
        with pytest.raises(InputError) as caught:
            use(volume)
        assert caught.value.code == code


def body_of(header: object, voxels: bytes | None = None, *, magic: bytes = MAGIC, codec: int = 0) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    array = scan().array.tobytes() if voxels is None else voxels
    packed = CODECS["zlib"].pack(np.frombuffer(array, np.uint8), 2)
    return magic + bytes([codec]) + len(raw).to_bytes(4, "little") + raw + len(packed).to_bytes(4, "little") + packed


def refused(body: bytes, *, limit_bytes: int = LIMIT, digest: str | None = None) -> str:
    with pytest.raises(MedSightError) as caught:
        receive([body], digest=digest, limit_bytes=limit_bytes)
    assert caught.value.sentence
    return caught.value.code


def header(**changes: object) -> dict:
    return header_of(scan()) | changes


GRID = [[5.0, 0.7, 0.8], [0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0], True]


def grid(spacing: object = None, direction: object = None, physical: object = True) -> list:
    return [[spacing or GRID[0], direction or GRID[1], physical]]


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"dtype": "float64"}, "bad_dtype"),
        ({"dtype": "object"}, "bad_dtype"),
        ({"dtype": ">i2"}, "bad_dtype"),
        ({"dtype": 5}, "bad_volume"),
        ({"dtype": "uint8"}, "bad_volume"),  # so there are more voxels than declared
        ({"shape": [3, 8]}, "bad_shape"),
        ({"shape": [3, 8, 6, 4]}, "bad_shape"),
        ({"shape": [3, 8, 6, 3]}, "bad_dtype"),
        ({"shape": [3, 8, 0]}, "bad_volume"),
        ({"shape": [3, 8, -6]}, "bad_volume"),
        ({"shape": [3, 8, 6.0]}, "bad_volume"),
        ({"shape": [3, 8, 10**30]}, "bad_volume"),
        ({"shape": [3, 65535, 65535]}, "too_large"),
        ({"shape": [10**8, 8, 6]}, "too_large"),
        ({"shape": [100_000, 8, 6]}, "too_large"),
        ({"shape": [4, 8, 6]}, "bad_geometry"),
        ({"slices": []}, "bad_geometry"),
        ({"slices": [[0, 0.0, 0.0, 0.0]] * 30_000}, "bad_volume"),
        ({"slices": [[1, 0.0, 0.0, 0.0]] * 3}, "bad_geometry"),
        ({"slices": [[-1, 0.0, 0.0, 0.0]] * 3}, "bad_volume"),
        ({"slices": [[0, 0.0, 0.0]] * 3}, "bad_volume"),
        ({"slices": [[0, 0.0, 0.0, None]] * 3}, "bad_volume"),
        ({"slices": [[0, 0.0, 0.0, 1e300]] * 3}, "bad_volume"),
        ({"frame": [7, 0.0, 0.0, 0.0]}, "bad_geometry"),
        ({"frame": "yes"}, "bad_volume"),
        ({"grids": grid([0.0, 0.7, 0.8])}, "bad_geometry"),
        ({"grids": grid([5.0, -0.7, 0.8])}, "bad_geometry"),
        ({"grids": grid([5.0, 5e-324, 0.8])}, "bad_geometry"),
        ({"grids": grid(direction=[1.0, 0.0, 0.0] * 3)}, "bad_geometry"),
        ({"grids": grid(direction=[0.0] * 9)}, "bad_geometry"),
        ({"grids": grid(direction=[2.0, 0, 0, 0, 2.0, 0, 0, 0, 2.0])}, "bad_geometry"),
        ({"grids": grid(physical=1)}, "bad_volume"),
        ({"grids": grid(spacing=[1.0, 1.0])}, "bad_volume"),
        ({"frame": None}, "bad_volume"),
        ({"frame": None, "problem": "Doe^Jane was here"}, "bad_volume"),
        ({"frame": None, "problem": "x" * 99}, "bad_volume"),
        ({"modality": "Doe"}, "bad_volume"),
        ({"kind": "pickle"}, "bad_volume"),
        ({"dicom_modality": "Doe"}, "bad_volume"),
        ({"photometric": 1}, "bad_volume"),
        ({"window": [1.0]}, "bad_volume"),
        ({"window": [1.0, "2"]}, "bad_volume"),
        ({"placed": None}, "bad_volume"),
        ({"patient": "Doe"}, "bad_volume"),
    ],
)
def test_a_header_that_no_scan_has_is_refused(wrong: dict, code: str) -> None:
    assert refused(body_of(header(**wrong))) == code
    if wrong != {"dtype": "uint8"}:
        with pytest.raises(InputError) as caught:
            begin(body_of(header(**wrong)), limit_bytes=LIMIT)
        assert caught.value.code == code


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b"[]",
        b"\xff\xfe\xfd",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"1" * 10_000,
        json.dumps(header(window=[float("nan"), 1.0])).encode(),
        json.dumps(header(window=[float("inf"), 1.0])).encode(),
        json.dumps(header()).replace("0.7", "1e999").encode(),
    ],
)
def test_a_header_that_is_no_json_of_ours_is_refused(raw: bytes) -> None:
    assert refused(body_of(raw)) == "bad_volume"


def test_other_bytes_are_refused() -> None:
    good = body_of(header())
    assert receive([good], digest=None, limit_bytes=LIMIT).n_slices == 3
    assert refused(b"") == "truncated"
    assert refused(b"<html>502 Bad Gateway</html>") == "bad_volume"
    assert refused(body_of(header(), magic=b"MSV\x02")) == "bad_volume"
    assert refused(body_of(header(), codec=7)) == "unknown_codec"
    assert refused(good + b"x") == "bad_volume"
    assert refused(MAGIC + b"\0" + (2**31).to_bytes(4, "little")) == "bad_volume"
    assert refused(MAGIC + b"\0" + bytes(4)) == "bad_volume"
    assert refused(good, digest="0" * 64) == "wrong_digest"
    assert refused(good, limit_bytes=287) == "too_large"
    receive([good], digest=None, limit_bytes=288)
    with pytest.raises(InputError):
        begin(b"<h", limit_bytes=LIMIT)
    assert begin(MAGIC[:2], limit_bytes=LIMIT) is None and begin(good[:50], limit_bytes=LIMIT) is None


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_a_volume_that_was_cut_off_is_refused(where: int) -> None:
    body = body_of(header())
    assert refused(body[: where % len(body)]) == "truncated"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    array = scan().array.astype(np.float32)
    array[1, 2, 3] = bad
    volume = scan(array=array)
    with pytest.raises(InputError) as caught:
        receive(chunks_of(volume), digest=digest_of(volume), limit_bytes=LIMIT)
    assert caught.value.code == "not_finite"


@pytest.mark.parametrize("extra", [1, 100_000_000])
def test_a_piece_does_not_inflate_beyond_its_place(extra: int) -> None:
    raw = json.dumps(header()).encode()
    bomb = zlib.compress(bytes(288 + extra), 9)
    head = MAGIC + b"\0" + len(raw).to_bytes(4, "little") + raw
    assert refused(head + len(bomb).to_bytes(4, "little") + bomb) == "bad_volume"
    assert refused(head + (2**32 - 1).to_bytes(4, "little") + bomb) == "bad_volume"
    assert refused(head + bytes(4)) == "bad_volume"


def test_no_memory_is_taken_for_what_is_only_declared() -> None:
    """A header of 1 GiB without its voxels, in a process that may not take so much."""
    declared = header(
        shape=[256, 2048, 1024], slices=[[0, 0.0, 0.0, float(k)] for k in range(256)], frame=None, problem="cine"
    )
    body = body_of(declared)
    program = (
        "import resource, sys\n"
        "from medsight_core.errors import MedSightError\n"
        "from medsight_core.wire.volumes import receive\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))\n"
        "body = sys.stdin.buffer.read()\n"
        "for limit in (2**28, 2**31):\n"
        "    try: receive([body], digest=None, limit_bytes=limit)\n"
        "    except MedSightError as error: print(error.code)\n"
    )
    if not Path("/proc/self/statm").exists():
        pytest.skip("how much memory a process has is read from /proc")
    run = subprocess.run([sys.executable, "-c", program], input=body, capture_output=True, check=True, timeout=60)
    assert run.stdout.split() == [b"too_large", b"out_of_memory"]


def fuzzed(data: st.DataObject, body: bytes, start: int) -> bytes:
    """A body with a few bytes changed, taken out or put in."""
    damaged = bytearray(body)
    for _ in range(data.draw(st.integers(1, 5))):
        where = data.draw(st.integers(start, len(damaged)))
        kind = data.draw(st.sampled_from(("change", "remove", "insert", "number")))
        some = data.draw(st.binary(min_size=1, max_size=4))
        if kind == "change":
            damaged[where : where + len(some)] = some
        elif kind == "remove":
            del damaged[where : where + len(some)]
        elif kind == "insert":
            damaged[where:where] = some
        else:
            number = data.draw(st.sampled_from((0, 1, 2**31 - 1, 2**31, 2**32 - 1)))
            damaged[where : where + 4] = number.to_bytes(4, "little")
    return bytes(damaged)


@settings(max_examples=200, deadline=None)
@given(st.data())
@pytest.mark.parametrize("codec", usable_codecs())
def test_damage_never_gives_another_volume_nor_an_error_without_a_name(codec: Codec, data: st.DataObject) -> None:
    """In headers and in voxels; blosc2's own format is in a process of its own in the next test."""
    volume = scan((2, 40, 30))
    body = b"".join(chunks_of(volume, codec=codec))
    voxels = 9 + int.from_bytes(body[5:9], "little")
    damaged = fuzzed(data, body, data.draw(st.sampled_from((0, voxels))))
    try:
        got = receive([damaged], digest=digest_of(volume), limit_bytes=LIMIT)
    except MedSightError as error:
        assert error.code and error.sentence
    else:
        assert (got.array == volume.array).all() and header_of(got) == header_of(volume)


@pytest.mark.skipif("blosc2" not in usable_codecs(), reason="blosc2 is not installed")
def test_damaged_blosc2_does_not_end_the_process() -> None:
    program = (
        "import numpy as np\n"
        "from medsight_core.errors import MedSightError\n"
        "from medsight_core.wire.codecs import CODECS\n"
        "rng, coder, decoded, refused = np.random.default_rng(7), CODECS['blosc2'], 0, 0\n"
        "pieces = [(item, rng.integers(0, top, item * 20_000, np.uint8)) for item in (1, 2, 4) for top in (3, 50)]\n"
        "packed = [(item, len(piece), coder.pack(piece, item)) for item, piece in pieces]\n"
        "for _ in range(2000):\n"
        "    item, size, good = packed[rng.integers(len(packed))]\n"
        "    bad = bytearray(good)\n"
        "    for _ in range(rng.integers(1, 6)):\n"
        "        where = int(rng.integers(32 if rng.random() < 0.8 else 0, min(len(bad), 700)))\n"
        "        bad[where : where + 4] = rng.integers(0, 256, len(bad[where : where + 4]), np.uint8).tobytes()\n"
        "    try: coder.unpack(bytes(bad), np.zeros(size, np.uint8), item); decoded += 1\n"
        "    except MedSightError: refused += 1\n"
        "print(decoded, refused)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, timeout=120)
    assert run.returncode == 0, run.stderr
    decoded, refused_count = map(int, run.stdout.split())
    assert decoded + refused_count == 2000 and min(decoded, refused_count) > 100


@pytest.mark.skipif("blosc2" not in usable_codecs(), reason="blosc2 is not installed")
@pytest.mark.parametrize(
    ("place", "value"),
    [(0, 99), (2, 0x25), (3, 8), (4, 1), (8, 0), (12, 5), (16, 2), (21, 4), (22, 37), (23, 1), (31, 0x40), (31, 0x20)],
)
def test_of_blosc2_only_what_we_write_is_read(place: int, value: int) -> None:
    """Other codecs and filters of its format are plug-ins that it would load, and 0x40 leaves memory as it was."""
    piece = np.arange(400, dtype=np.int16).view(np.uint8)
    bad = bytearray(CODECS["blosc2"].pack(piece, 2))
    assert bad[place] != value
    bad[place] = value
    with pytest.raises(InputError) as caught:
        CODECS["blosc2"].unpack(bytes(bad), np.zeros(800, np.uint8), 2)
    assert caught.value.code == "bad_volume"


REAL = (
    "ct_abdomen_totalseg",
    "mr_brain_PGBM-003_FLAIR",
    "mr_multiframe",
    "cr_extremity_j2k",
    "dx_chest",
    "us/US1_J2KR.dcm",
    "us/JPGLosslessP14SV1_1s_1f_8b.dcm",
    "ct_compressed/693_J2KR.dcm",
    "ct_compressed/eCT_Supplemental.dcm",
)


@pytest.mark.parametrize("name", REAL)
def test_a_real_series_is_the_same_to_a_model_after_its_way(name: str, shared_data: Path) -> None:
    volume = open_volume(shared_data / "dicom" / name)
    for codec in usable_codecs():
        got = receive(chunks_of(volume, codec=codec), digest=digest_of(volume), limit_bytes=2**28)
        assert_same_for_a_model(volume, got)
        assert got.source.paths == () and got.source.series_uid is None and not got.source.description


def test_wire_needs_neither_blosc2_nor_torch() -> None:
    """Where blosc2 is missing, zlib is what there is, and a volume in blosc2 is refused by name."""
    program = (
        "import sys\n"
        "absent = 'torch fastapi blosc2 highdicom SimpleITK pydicom nibabel'\n"
        "for name in absent.split(): sys.modules[name] = None\n"
        "import importlib.machinery\n"
        "real = importlib.machinery.PathFinder.find_spec\n"
        "importlib.machinery.PathFinder.find_spec = classmethod(\n"
        "    lambda cls, name, *rest: None if name == 'blosc2' else real(name, *rest))\n"
        "sys.modules.pop('blosc2')\n"
        "from medsight_core.errors import MedSightError\n"
        "from medsight_core.wire import events, requests, prompts\n"
        "from medsight_core.wire.volumes import chunks_of, digest_of, receive\n"
        "from medsight_core.wire.codecs import usable_codecs\n"
        "print(usable_codecs())\n"
        "body = sys.stdin.buffer.read()\n"
        "try: receive([body], digest=None, limit_bytes=2**20)\n"
        "except MedSightError as error: print(error.code)\n"
    )
    body = b"".join(chunks_of(scan(), codec=usable_codecs()[0]))
    if usable_codecs()[0] != "blosc2":
        pytest.skip("blosc2 is not installed")
    run = subprocess.run([sys.executable, "-c", program], input=body, capture_output=True, check=False, timeout=60)
    assert run.stdout.split(b"\n")[:2] == [b"('zlib',)", b"unknown_codec"], run.stderr


def test_the_limits_fit_together() -> None:
    """The largest header that can be told is shorter than the longest that is read."""
    slices = 20_000
    grids = [[[1 / 3] * 3, [-1 / 3] * 9, False]] * (slices + 1)
    told = canonical({"grids": grids, "slices": [[slices, -1e3 / 3, -1e3 / 3, -1e3 / 3]] * slices})
    assert len(told) < wire.LONGEST_HEADER
