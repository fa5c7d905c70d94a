"""Volumes over HTTP: sent once, known afterwards, refused by name, and nothing left of what was refused."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsight_core.imaging.volume import open_volume
from medsight_core.inference.scheduler import Scheduler
from medsight_core.server.app import create_app
from medsight_core.server.config import ServerConfig
from medsight_core.server.listening import Server, address_of, listen
from medsight_core.server.masks import Masks
from medsight_core.server.store import VolumeStore
from medsight_core.server.volumes import CODECS_HEADER, largest_body
from medsight_core.wire.codecs import usable_codecs
from medsight_core.wire.volumes import chunks_of, digest_of, header_of
from tests.server.running import until
from tests.wire.scans import scan

LIMIT = 2**22


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> VolumeStore:
    return VolumeStore(tmp_path_factory.mktemp("store"), limit_bytes=LIMIT, quota_bytes=4 * LIMIT)


@pytest.fixture(scope="module")
def url(store: VolumeStore, backend: Scheduler) -> Iterator[str]:
    config = ServerConfig(port=0)
    app = create_app(backend, config, store, Masks())
    with listen(config) as listener:
        server = Server(app, config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        until(lambda: server.started)
        yield address_of(config, listener)
        server.should_exit = server.force_exit = True
        thread.join(30)
    assert not thread.is_alive()


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        yield client


def no_leftovers(store: VolumeStore) -> bool:
    return not list(store.folder.glob("*.part"))


@pytest.mark.parametrize("codec", usable_codecs())
def test_a_volume_is_sent_once_and_known_afterwards(client: httpx.Client, store: VolumeStore, codec: Any) -> None:
    volume = scan((5, 40, 60), seed=1 + usable_codecs().index(codec))
    name = f"/v1/volumes/{digest_of(volume)}"
    asked = client.head(name)
    assert asked.status_code == 404 and asked.headers[CODECS_HEADER].split(", ") == list(usable_codecs())
    sent = client.put(name, content=chunks_of(volume, codec=codec))  # in chunks: no Content-Length
    assert sent.status_code == 201 and sent.json() == {"volume": digest_of(volume)}
    assert client.head(name).status_code == 200
    assert client.put(name, content=b"".join(chunks_of(volume))).status_code == 201
    assert (store.open(digest_of(volume)).array == volume.array).all() and no_leftovers(store)


def test_a_real_series_arrives(client: httpx.Client, store: VolumeStore, shared_data: Path) -> None:
    volume = open_volume(shared_data / "dicom" / "seg_ct3slice_liver")
    digest = digest_of(volume)
    assert client.put(f"/v1/volumes/{digest}", content=chunks_of(volume)).status_code == 201
    got = store.open(digest)
    assert got.array.tobytes() == volume.array.tobytes() and header_of(got) == header_of(volume)


def large_header() -> bytes:
    told = header_of(scan()) | {"shape": [3, 8000, 8000]}
    raw = json.dumps(told).encode()
    return b"MSV\x01\x00" + len(raw).to_bytes(4, "little") + raw


BODY = b"".join(chunks_of(scan()))


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "truncated"),
        (BODY[:-40], 400, "truncated"),
        (BODY + b"x" * 5000, 400, "bad_volume"),
        (b"<html>502 Bad Gateway</html>" * 100_000, 400, "bad_volume"),
        (b"\x1f\x8b" + bytes(3_000_000), 400, "bad_volume"),
        (large_header() + bytes(3_000_000), 413, "too_large"),
        (bytes(9 * LIMIT), 413, "too_large"),
        (b"".join(chunks_of(scan(seed=99))), 400, "wrong_digest"),
    ],
    ids=["empty", "half", "more", "html", "gzip", "declared", "sent", "other"],
)
def test_what_is_no_volume_is_refused_by_name(
    client: httpx.Client, store: VolumeStore, body: bytes, status: int, code: str
) -> None:
    before = set(store.folder.iterdir())
    name = f"/v1/volumes/{digest_of(scan(seed=77))}"
    reply = client.put(name, content=body)
    assert reply.status_code == status
    assert reply.headers["content-type"] == "application/problem+json"
    problem = reply.json()
    assert problem["code"] == code and problem["detail"] and problem["status"] == status
    assert set(store.folder.iterdir()) == before and client.head(name).status_code == 404


@pytest.mark.parametrize("name", ["x", "A" * 64, "..%2F" + "a" * 61, "a" * 63, "%00" * 64])
def test_a_name_that_is_no_digest_is_refused(client: httpx.Client, name: str) -> None:
    assert client.head(f"/v1/volumes/{name}").status_code in (400, 404)
    assert client.put(f"/v1/volumes/{name}", content=b"x").status_code in (400, 404)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_client_that_goes_away_leaves_nothing(url: str, store: VolumeStore, chunked: bool) -> None:
    volume = scan((3, 300, 300), seed=5)
    body = b"".join(chunks_of(volume))
    where = urlsplit(url)
    how = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
    head = f"PUT /v1/volumes/{digest_of(volume)} HTTP/1.1\r\nHost: {where.netloc}\r\n{how}\r\n\r\n".encode()
    half = body[: len(body) // 2]
    with socket.create_connection((where.hostname, where.port)) as line:
        line.sendall(head + (f"{len(half):x}\r\n".encode() + half + b"\r\n" if chunked else half))
        until(lambda: list(store.folder.glob(".*.part")))
    until(lambda: no_leftovers(store))
    assert not store.has(digest_of(volume))


def test_a_full_store_says_so(client: httpx.Client, store: VolumeStore) -> None:
    held = []
    for seed in range(20, 40):
        volume = scan((4, 512, 512), seed=seed)
        reply = client.put(f"/v1/volumes/{digest_of(volume)}", content=chunks_of(volume))
        if reply.status_code != 201:
            break
        held.append(store.open(digest_of(volume)))  # in use, so it stays
    assert (reply.status_code, reply.json()["code"]) == (507, "storage_full") and len(held) > 3
    assert no_leftovers(store) and all(store.has(digest_of(volume)) for volume in held)
    held.clear()
    assert client.put(f"/v1/volumes/{digest_of(volume)}", content=chunks_of(volume)).status_code == 201


def test_the_route_takes_more_than_the_rest_of_the_server(store: VolumeStore) -> None:
    assert LIMIT < largest_body(store) < 9 * LIMIT


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_uploads_never_end_in_an_error_of_the_server(data: st.DataObject, url: str) -> None:
    body = bytearray(BODY)
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, len(body)))
        body[where : where + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    name = f"/v1/volumes/{digest_of(scan())}"
    reply = httpx.put(url + name, content=bytes(body), trust_env=False, timeout=60)
    assert reply.status_code in (201, 400, 413)
    if reply.status_code == 201:
        assert body == BODY
