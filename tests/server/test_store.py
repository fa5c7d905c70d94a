"""The store of volumes: whole files or none, the same object for the same volume, room made for what is new."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medsight_core.errors import InputError, MedSightError
from medsight_core.imaging.volume import Volume
from medsight_core.server.store import VolumeStore
from medsight_core.wire.codecs import usable_codecs
from medsight_core.wire.volumes import chunks_of, digest_of
from tests.wire.scans import scan


def body_of(volume: Volume) -> bytes:
    return b"".join(chunks_of(volume, codec="zlib"))


def send(store: VolumeStore, volume: Volume, *, digest: str | None = None, part: int = 1000) -> Volume:
    body = body_of(volume)
    with store.upload(digest or digest_of(volume)) as upload:
        for start in range(0, len(body), part):
            upload.write(body[start : start + part])
        return upload.finish()


def files(store: VolumeStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def code_of(call, *arguments) -> str:
    with pytest.raises(MedSightError) as caught:
        call(*arguments)
    assert caught.value.sentence and str(caught.value).count("/") == 0  # no path of the server in it
    return caught.value.code


@pytest.fixture
def store(tmp_path: Path) -> VolumeStore:
    return VolumeStore(tmp_path / "volumes")


def test_a_volume_that_was_sent_is_known_and_opens(store: VolumeStore) -> None:
    volume = scan()
    digest = digest_of(volume)
    assert not store.has(digest) and code_of(store.open, digest) == "volume_unknown"
    sent = send(store, volume)
    assert store.has(digest) and (sent.array == volume.array).all()
    assert files(store) == [f"{digest}.volume"]


def test_the_same_volume_is_the_same_object_while_anybody_holds_it(tmp_path: Path) -> None:
    store = VolumeStore(tmp_path, memory_bytes=1)
    first = send(store, scan(seed=1))
    digest = digest_of(first)
    for seed in (2, 3):
        send(store, scan(seed=seed))  # which pushes the first one out of memory
    assert store.open(digest) is first and send(store, scan(seed=1)) is first and store.keep(scan(seed=1)) is first
    known = id(first), np.array(first.array)
    send(store, scan(seed=2))
    del first
    gc.collect()
    again = store.open(digest)
    assert (again.array == known[1]).all()


def test_after_a_restart_a_volume_is_known_and_checked_anew(tmp_path: Path) -> None:
    volume = scan()
    digest = digest_of(volume)
    send(VolumeStore(tmp_path), volume)
    again = VolumeStore(tmp_path)
    assert again.has(digest) and (again.open(digest).array == volume.array).all()


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other"])
def test_a_file_that_was_damaged_is_unknown_and_can_be_sent_again(tmp_path: Path, damage: str) -> None:
    volume = scan()
    digest = digest_of(volume)
    send(VolumeStore(tmp_path), volume)
    path = tmp_path / f"{digest}.volume"
    body = bytearray(path.read_bytes())
    body[-20] ^= 1
    path.write_bytes(
        {"flip": bytes(body), "cut": bytes(body[:-9]), "empty": b"", "other": body_of(scan(seed=5))}[damage]
    )
    store = VolumeStore(tmp_path)
    assert code_of(store.open, digest) == "volume_unknown"
    assert not store.has(digest) and files(store) == []
    assert (send(store, volume).array == volume.array).all() and store.has(digest)


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("half", "truncated"),
        ("wrong digest", "wrong_digest"),
        ("too large", "too_large"),
        ("html", "bad_volume"),
        ("more", "bad_volume"),
        ("nothing", "truncated"),
        ("broken", "bad_volume"),
    ],
)
def test_nothing_is_left_of_an_upload_that_is_refused(tmp_path: Path, how: str, code: str) -> None:
    volume = scan()
    body, digest = body_of(volume), digest_of(volume)
    store = VolumeStore(tmp_path, limit_bytes=100 if how == "too large" else 2**20)
    sent = {
        "half": body[:-100],
        "html": b"<html>Bad Gateway</html>",
        "more": body + bytes(10_000),
        "nothing": b"",
        "broken": body[:-50] + bytes(50),
    }.get(how, body)

    def try_it() -> None:
        with store.upload("0" * 64 if how == "wrong digest" else digest) as upload:
            upload.write(sent)
            upload.finish()

    assert code_of(try_it) == code
    assert files(store) == [] and not store.has(digest)
    assert code_of(store.open, digest) == "volume_unknown"


def test_more_than_a_volume_can_have_is_refused_while_it_comes(store: VolumeStore) -> None:
    body = body_of(scan())
    with store.upload(digest_of(scan())) as upload:
        upload.write(body)
        with pytest.raises(InputError):
            for _ in range(100):
                upload.write(bytes(1000))


@pytest.mark.parametrize("name", ["", "..", "../" + "a" * 61, "A" * 64, "a" * 63, "a" * 65, "a/" * 32, "a" * 64 + "\n"])
def test_only_a_digest_names_a_volume(store: VolumeStore, name: str) -> None:
    assert code_of(store.open, name) == "bad_request"
    assert code_of(store.upload, name) == "bad_request" and code_of(store.has, name) == "bad_request"
    assert not (store.folder.parent / "a").exists()


def test_those_not_used_for_longest_make_room(tmp_path: Path) -> None:
    size = len(body_of(scan()))
    store = VolumeStore(tmp_path, quota_bytes=int(3.5 * size), memory_bytes=1)
    digests = [digest_of(send(store, scan(seed=seed))) for seed in range(3)]
    assert all(map(store.has, digests))  # which uses them, in this order
    assert store.has(digests[0])
    digests.append(digest_of(send(store, scan(seed=3))))
    assert [store.has(digest) for digest in digests] == [True, False, True, True]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= store.quota_bytes


def test_a_volume_in_use_stays(tmp_path: Path) -> None:
    size = len(body_of(scan()))
    store = VolumeStore(tmp_path, quota_bytes=int(2.5 * size))
    oldest = send(store, scan(seed=0))
    others = [digest_of(send(store, scan(seed=seed))) for seed in range(1, 4)]
    assert store.has(digest_of(oldest)) and [store.has(one) for one in others] == [False, False, True]
    held = [oldest, store.open(others[2])]
    assert code_of(send, store, scan(seed=9)) == "storage_full"
    assert all(store.has(digest_of(one)) for one in held) and len(files(store)) == 2


def test_a_volume_larger_than_the_quota_sends_no_other_away(tmp_path: Path) -> None:
    store = VolumeStore(tmp_path, quota_bytes=2000)
    small = digest_of(send(store, scan()))
    assert code_of(send, store, scan((3, 64, 64))) == "storage_full"
    assert files(store) == [f"{small}.volume"]


def test_the_order_of_use_outlives_a_restart(tmp_path: Path) -> None:
    size = len(body_of(scan()))
    store = VolumeStore(tmp_path, quota_bytes=int(2.5 * size))
    first, second = (digest_of(send(store, scan(seed=seed))) for seed in range(2))
    store.open(first)
    again = VolumeStore(tmp_path, quota_bytes=int(2.5 * size))
    third = digest_of(send(again, scan(seed=2)))
    assert [again.has(one) for one in (first, second, third)] == [True, False, True]


def test_two_uploads_of_one_volume_at_once_give_one_volume(store: VolumeStore) -> None:
    volume = scan((4, 64, 64))
    body, digest, together = body_of(volume), digest_of(volume), threading.Barrier(6)

    def one(part: int) -> Volume:
        with store.upload(digest) as upload:
            together.wait()
            for start in range(0, len(body), part):
                upload.write(body[start : start + part])
            return upload.finish()

    with ThreadPoolExecutor(6) as pool:
        got = list(pool.map(one, (500, 700, 900, 1100, 1300, 5000)))
    assert len(set(map(id, got))) == 1 and got[0] is store.open(digest)
    assert files(store) == [f"{digest}.volume"]


def test_a_volume_is_opened_once_however_many_ask(tmp_path: Path) -> None:
    volume = scan((4, 64, 64))
    digest = digest_of(volume)
    send(VolumeStore(tmp_path), volume)
    store, together = VolumeStore(tmp_path), threading.Barrier(8)

    def one(_: int) -> Volume:
        together.wait()
        return store.open(digest)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(map(id, pool.map(one, range(8))))) == 1


def test_a_broken_upload_does_not_spoil_another_of_the_same_volume(store: VolumeStore) -> None:
    volume = scan()
    body, digest = body_of(volume), digest_of(volume)
    with store.upload(digest) as half:
        half.write(body[:100])
        send(store, volume)
        assert code_of(half.finish) == "truncated"
    assert (store.open(digest).array == volume.array).all() and files(store) == [f"{digest}.volume"]


def test_two_servers_may_share_a_folder(tmp_path: Path) -> None:
    one = VolumeStore(tmp_path)
    with one.upload(digest_of(scan())) as upload:
        upload.write(body_of(scan()))
        other = VolumeStore(tmp_path)  # which leaves alone what the first is taking in
        upload.finish()
    digest = digest_of(scan())
    assert other.has(digest) and (other.open(digest).array == scan().array).all()
    (tmp_path / f"{digest}.volume").unlink()  # as the other server makes room
    assert VolumeStore(tmp_path).has(digest) is False
    assert other.has(digest)  # it has it in memory


def test_a_good_upload_takes_the_place_of_a_damaged_file(tmp_path: Path) -> None:
    volume = scan()
    path = tmp_path / f"{digest_of(volume)}.volume"
    path.write_bytes(b"damaged")
    store = VolumeStore(tmp_path, quota_bytes=len(body_of(volume)))
    send(store, volume)
    assert (VolumeStore(tmp_path).open(digest_of(volume)).array == volume.array).all()


def test_files_of_others_in_the_folder_stay(tmp_path: Path) -> None:
    (tmp_path / "film.part").write_text("x")
    (tmp_path / "notes.volume").write_text("x" * 10_000)
    store = VolumeStore(tmp_path, quota_bytes=2000)
    for seed in range(3):
        send(store, scan(seed=seed))
    assert {"film.part", "notes.volume"} < set(files(store))


def test_a_volume_that_came_otherwise_is_stored(store: VolumeStore, tmp_path: Path) -> None:
    digest = store.put(scan())
    assert digest == digest_of(scan()) and store.put(scan()) == digest
    assert (VolumeStore(tmp_path / "volumes").open(digest).array == scan().array).all()


def test_a_picture_is_kept_in_memory_only(store: VolumeStore) -> None:
    picture = store.keep(scan())
    assert store.keep(scan()) is picture and store.open(digest_of(picture)) is picture and files(store) == []


def test_voxels_that_are_not_finite_are_refused(store: VolumeStore) -> None:
    array = np.full((3, 8, 6), np.nan, np.float32)
    assert code_of(send, store, scan(array=array)) == "not_finite" and files(store) == []


def test_others_cannot_read_the_folder(store: VolumeStore) -> None:
    if os.name != "posix":
        pytest.skip("permissions are those of POSIX")
    send(store, scan())
    assert store.folder.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in store.folder.iterdir())


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert code_of(VolumeStore, tmp_path / "file") == "not_stored"


KILLED = """
import os, signal, sys, time
from pathlib import Path
from medsight_core.server.store import VolumeStore
from medsight_core.wire.volumes import chunks_of, digest_of
from tests.wire.scans import scan

store, volume = VolumeStore(Path(sys.argv[1])), scan((4, 128, 128))
body, when = b"".join(chunks_of(volume)), sys.argv[2]
if when == "replacing":
    os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
if when == "syncing":
    os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
with store.upload(digest_of(volume)) as upload:
    upload.write(body if when != "writing" else body[: len(body) // 2])
    if when == "writing":
        print("half", flush=True)
        time.sleep(60)
    upload.finish()
"""


@pytest.mark.parametrize("when", ["writing", "syncing", "replacing"])
def test_a_server_that_is_killed_leaves_no_broken_file(tmp_path: Path, when: str, repository: Path) -> None:
    volume = scan((4, 128, 128))
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path), when], cwd=repository, stdout=subprocess.PIPE
    )
    try:
        if when == "writing":
            assert child.stdout is not None and child.stdout.readline() == b"half\n"
            assert len(list(tmp_path.iterdir())) == 1
            child.send_signal(signal.SIGKILL)
        assert child.wait(60) == -signal.SIGKILL
    finally:
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
    store = VolumeStore(tmp_path)
    assert files(store) == [] and not store.has(digest_of(volume))
    assert (send(store, volume).array == volume.array).all()


FULL = """
import sys
from pathlib import Path
from medsight_core.errors import MedSightError
from medsight_core.server.store import VolumeStore
from medsight_core.wire.volumes import chunks_of, digest_of
from tests.wire.scans import scan

store = VolumeStore(Path(sys.argv[1]) / "volumes")
large, small = scan((40, 256, 256)), scan((3, 64, 64))
held = store.open(store.put(small))
def send(volume):
    try:
        with store.upload(digest_of(volume)) as upload:
            for chunk in chunks_of(volume):
                upload.write(chunk)
            upload.finish()
        return "stored"
    except MedSightError as error:
        return error.code
def names():
    return sorted(path.suffix for path in store.folder.iterdir())
print(send(large), names())
print(send(scan((3, 64, 64), seed=1)), names())
# Volumes that nobody uses make room on a full disk, whatever the quota says.
print([send(scan((12, 256, 256), seed=seed)) for seed in range(2, 5)], names(), store.has(digest_of(held)))
"""


def test_a_full_disk_is_named_and_nothing_is_left_behind(tmp_path: Path, repository: Path) -> None:
    """On a file system of 2 MB, in a namespace of its own."""
    unshare = shutil.which("unshare")
    script = 'mount -t tmpfs -o size=2m none "$1" && exec "$2" -c "$3" "$1"'
    command = [str(unshare), "-rm", "sh", "-c", script, "sh", str(tmp_path), sys.executable]
    if unshare is None or subprocess.run([*command, "pass"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets no user mount a small file system")
    run = subprocess.run([*command, FULL], cwd=repository, capture_output=True, text=True, check=False, timeout=120)
    assert run.stdout.splitlines() == [
        "storage_full ['.volume']",
        "stored ['.volume', '.volume']",
        "['stored', 'stored', 'stored'] ['.volume', '.volume'] True",
    ], run.stderr


def test_what_came_in_blosc2_is_known_after_a_restart(tmp_path: Path) -> None:
    volume = replace(scan((4, 64, 64)), modality="MR")
    store = VolumeStore(tmp_path)
    with store.upload(digest_of(volume)) as upload:
        for chunk in chunks_of(volume, codec=usable_codecs()[0]):
            upload.write(chunk)
        upload.finish()
    assert (VolumeStore(tmp_path).open(digest_of(volume)).array == volume.array).all()
