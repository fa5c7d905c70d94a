"""Volumes by their digest: files that outlive the server, and those in use as open `Volume`s.

A volume is kept as the bytes that were sent. A file has its name only once it is whole, checked and on the disk, so a
server that is killed leaves none that is broken; after a restart a file is checked again when it is first used. Which
volumes there are is what lies in the folder, so several servers may share one.

A digest gives the same `Volume` object for as long as anybody holds it: what an engine knows of a volume it knows of
that object.
"""

from __future__ import annotations

import errno
import os
import tempfile
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import IO, Final

from medsight_core.errors import InputError, MedSightError
from medsight_core.imaging.volume import Volume
from medsight_core.wire.codecs import usable_codecs
from medsight_core.wire.requests import DIGEST
from medsight_core.wire.volumes import begin, chunks_of, digest_of, receive

QUOTA_BYTES: Final = 20 * 2**30
"""Of all files together."""

LIMIT_BYTES: Final = 2 * 2**30
"""Of the voxels of one volume."""

MEMORY_BYTES: Final = 4 * 2**30
"""Of the voxels of the volumes that are kept open though nobody uses them just now."""

_ENDING: Final = ".volume"
_BEGINNING: Final = ".medsight-"
_UNFINISHED: Final = ".part"
_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)
_READ_BYTES: Final = 2**20


class VolumeStore:
    """Keeps volumes. Safe to share between threads; its methods block, some for seconds.

    Args:
        folder: Where the files lie; made where it is missing, for the user alone.
        quota_bytes: Of all files; those that were not used for longest go when room is needed.
        limit_bytes: Of the voxels of one volume.
        memory_bytes: Of the voxels of volumes that stay open.

    Raises:
        MedSightError: not_stored: the folder cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        *,
        quota_bytes: int = QUOTA_BYTES,
        limit_bytes: int = LIMIT_BYTES,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self.folder = folder
        self.quota_bytes = quota_bytes
        self.limit_bytes = limit_bytes
        self._memory_bytes = memory_bytes
        self._open: OrderedDict[str, Volume] = OrderedDict()
        # Also those that were let go of here while somebody still works on them.
        self._alive: weakref.WeakValueDictionary[str, Volume] = weakref.WeakValueDictionary()
        self._lock = threading.RLock()
        # One at a time: so much memory is taken for one more volume, never for many.
        self._loading = threading.Lock()
        with _stored():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in folder.glob(f"{_BEGINNING}*{_UNFINISHED}"):
                _sweep(path)

    def has(self, digest: str) -> bool:
        """Whether a volume is known; it counts as used now."""
        _check(digest)
        with self._lock:
            if digest in self._open:
                self._open.move_to_end(digest)
            return self._touch(digest) or digest in self._alive

    def open(self, digest: str) -> Volume:
        """The volume of a digest: the same object as long as anybody holds it.

        Raises:
            MedSightError: volume_unknown: it was never sent, or had to make room, or its file is damaged.
        """
        volume = self._known(digest)
        if volume is None:
            with self._loading:
                volume = self._known(digest) or self._load(digest)
        return volume

    def keep(self, volume: Volume) -> Volume:
        """Holds a volume in memory, without a file; returns the object that is known by its digest already, if any.

        For pictures that come with a question: asked about again, they are the same volume.

        Raises:
            InputError: See `digest_of`.
        """
        return self._hold(digest_of(volume), volume)

    def put(self, volume: Volume) -> str:
        """Stores a volume that came otherwise than over the wire; returns its digest.

        Raises:
            MedSightError: See `Upload`.
        """
        digest = digest_of(volume)
        if not self.has(digest):
            with self.upload(digest) as upload:
                for chunk in chunks_of(volume, codec=usable_codecs()[0]):
                    upload.write(chunk)
                upload.finish()
        return digest

    def upload(self, digest: str) -> Upload:
        """Takes in a volume; nothing is left of one that was not finished.

        Args:
            digest: That it will have.

        Raises:
            InputError: bad_request: that is no digest.
            MedSightError: storage_full, not_stored.
        """
        _check(digest)
        return Upload(store=self, digest=digest)

    def let_one_go(self) -> bool:
        """Removes the file that was not used for longest, of those that nobody uses; False where there is none."""
        with self._lock:
            for file in sorted(self._files()):
                if file.digest is not None and not self._in_use(file.digest):
                    file.path.unlink(missing_ok=True)
                    return True
        return False

    def accept(self, digest: str, path: Path, volume: Volume) -> Volume:
        """Gives a whole and checked file its name, and makes room for it among the others.

        Raises:
            MedSightError: storage_full, not_stored.
        """
        with self._lock:
            with _stored():
                self._keep_to_quota(digest, path.stat().st_size)
                os.replace(path, self._path(digest))  # also of one that is there: nobody has checked that lately
                self._touch(digest)
                _sync_folder(self.folder)
            return self._hold(digest, volume)

    def load(self, path: Path, digest: str) -> Volume:
        """Reads and checks a file; see `receive`."""
        with self._loading:
            return self._read(path, digest)

    def _read(self, path: Path, digest: str) -> Volume:
        with path.open("rb") as file:
            return receive(iter(lambda: file.read(_READ_BYTES), b""), digest=digest, limit_bytes=self.limit_bytes)

    def _load(self, digest: str) -> Volume:
        path = self._path(digest)
        try:
            volume = self._read(path, digest)
        except FileNotFoundError:
            raise volume_unknown() from None
        except OSError as error:
            raise _unusable(error) from error
        except InputError as error:
            # Damaged on the disk; it will be sent again.
            path.unlink(missing_ok=True)
            raise volume_unknown() from error
        self._touch(digest)
        return self._hold(digest, volume)

    def _known(self, digest: str) -> Volume | None:
        _check(digest)
        with self._lock:
            volume = self._alive.get(digest)
            if volume is not None:
                self._touch(digest)
                self._hold(digest, volume)
            return volume

    def _hold(self, digest: str, volume: Volume) -> Volume:
        with self._lock:
            volume = self._alive.setdefault(digest, volume)
            self._open[digest] = volume
            self._open.move_to_end(digest)
            total = sum(one.array.nbytes for one in self._open.values())
            while total > self._memory_bytes and len(self._open) > 1:
                _, oldest = self._open.popitem(last=False)
                total -= oldest.array.nbytes
            return volume

    def _keep_to_quota(self, digest: str, new: int) -> None:
        """Lets files go until a new one of so many bytes fits into the quota with the others."""
        while new + sum(file.size for file in self._files() if file.digest not in (None, digest)) > self.quota_bytes:
            if new > self.quota_bytes or not self.let_one_go():
                raise storage_full()

    def _in_use(self, digest: str) -> bool:
        """Whether anybody but this store holds a volume; it is let go of here where nobody does."""
        volume = self._open.pop(digest, None)
        if volume is None:
            return digest in self._alive
        del volume
        held = self._alive.get(digest)
        if held is None:
            return False
        self._open[digest] = held
        return True

    def _touch(self, digest: str) -> bool:
        """Notes on the file that it is used now; False where there is none."""
        now = time.time_ns()  # the time that the file system would take itself is too coarse
        with suppress(OSError):
            os.utime(self._path(digest), ns=(now, now))
            return True
        return False

    def _path(self, digest: str) -> Path:
        return self.folder / (digest + _ENDING)

    def _files(self) -> Iterator[_File]:
        with _stored(), os.scandir(self.folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # another server's, gone by now
                    facts = entry.stat(follow_symlinks=False)
                    name = entry.name.removesuffix(_ENDING)
                    ours = entry.name.endswith(_ENDING) and DIGEST.fullmatch(name) is not None
                    yield _File(
                        used=facts.st_mtime_ns, path=Path(entry.path), size=facts.st_size, digest=name if ours else None
                    )


class Upload:
    """A volume that is coming in. Must be closed, which removes what was not finished.

    Args:
        store: Where it goes.
        digest: That it will have.
    """

    def __init__(self, *, store: VolumeStore, digest: str) -> None:
        self._store = store
        self._digest = digest
        with _stored():
            handle, name = tempfile.mkstemp(dir=store.folder, prefix=_BEGINNING, suffix=_UNFINISHED)
        self._path = Path(name)
        self._file = FileIO(handle, "wb")  # unbuffered: what was written counts as written
        with suppress(OSError):  # of file systems without locks
            _claim(self._file)
        self._head: bytearray | None = bytearray()
        self._most = 0
        self._size = 0

    def write(self, chunk: bytes) -> None:
        """Takes the next bytes; where the disk is full, volumes that nobody uses make room.

        Raises:
            InputError: As soon as it shows that this is no volume; see `begin`.
            MedSightError: storage_full, not_stored.
        """
        self._size += len(chunk)
        if self._head is not None:
            self._head += chunk
            most = begin(self._head, limit_bytes=self._store.limit_bytes)
            if most is not None:
                self._head, self._most = None, most
        if self._head is None and self._size > self._most:
            raise InputError("bad_volume", "More bytes came than the volume can have.", "Send it again.")
        rest = memoryview(chunk)
        while len(rest):
            try:
                with _stored():
                    rest = rest[self._file.write(rest) :]
            except MedSightError as error:
                if error.code != "storage_full" or not self._store.let_one_go():
                    raise

    def finish(self) -> Volume:
        """Checks the whole, and keeps it.

        Raises:
            InputError: See `receive`.
            MedSightError: storage_full, not_stored.
        """
        with _stored():
            volume = self._store.load(self._path, self._digest)
            os.fsync(self._file.fileno())
            self._file.close()  # Windows renames no file that is open
        return self._store.accept(self._digest, self._path, volume)

    def close(self) -> None:
        """Ends it."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True, order=True)
class _File:
    """A file of the folder; ``digest`` is None where it is no finished volume."""

    used: int
    path: Path
    size: int
    digest: str | None


def storage_full() -> MedSightError:
    """There is no room."""
    return MedSightError(
        "storage_full",
        "There is no room on the server to keep the volume.",
        "Ask later, or ask whoever runs the server to make room or to raise its quota.",
    )


def volume_unknown() -> MedSightError:
    """The volume is not here."""
    return MedSightError(
        "volume_unknown", "This server does not have the volume, or has it no more.", "Send it, then ask again."
    )


def _unusable(error: OSError) -> MedSightError:
    """What the file system refuses; its own words may hold paths, which stay here."""
    return MedSightError(
        "not_stored",
        f"The server's folder of volumes cannot be used ({error.strerror or type(error).__name__}).",
        "Whoever runs the server should check that folder.",
    )


@contextmanager
def _stored() -> Iterator[None]:
    """Names what the file system refuses."""
    try:
        yield
    except OSError as error:
        raise (storage_full() if error.errno in _NO_SPACE else _unusable(error)) from error


def _check(digest: str) -> None:
    if not DIGEST.fullmatch(digest):
        raise InputError("bad_request", "A volume is named by its digest, 64 hexadecimal digits in lower case.")


def _claim(file: IO[bytes] | FileIO) -> None:
    """Marks an unfinished file as somebody's; the mark ends with the process, however that ends."""
    try:
        import fcntl
    except ImportError:  # Windows, where nobody can remove a file that is open
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sweep(path: Path) -> None:
    """Removes an unfinished file that a server left behind which was killed."""
    with suppress(OSError):
        with path.open("rb") as file:
            _claim(file)
        path.unlink()


def _sync_folder(folder: Path) -> None:
    """Brings a new name to the disk, where the system lets us."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
