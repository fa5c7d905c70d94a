"""The Hugging Face Hub, or a mirror of it: what a repository holds, and its files brought into the hub's own cache.

Where things lie, who may have them and how they are asked for is `huggingface_hub`'s business (``HF_HOME``,
``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HUB_OFFLINE``, proxies). Two things are done here. A large file that was cut off
goes on where it ended, also in another process: the library begins anew. And no file gets its place before its digest
is the one that the hub tells.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from medsight_core.errors import InputError, MedSightError
from medsight_core.models.manifest import digest_of

PART: Final = ".medsight.incomplete"
"""Ends the name of a file of which only the beginning is here."""

SECONDS: Final = 20.0
"""That the hub may take to say what a repository holds."""

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file of a repository.

    Attributes:
        path: Within the repository.
        bytes: Its size.
        git: The id that git gives to it.
        sha256: Of a large file; None for one that git itself holds.
    """

    path: str
    bytes: int
    git: str
    sha256: str | None


class Hub:
    """Asks the hub.

    Args:
        endpoint: A mirror; None for ``HF_ENDPOINT``, or the hub itself.
        cache: The hub's cache; None for the one in ``HF_HOME``.

    Raises:
        MedSightError: huggingface_hub is not installed.
    """

    def __init__(self, *, endpoint: str | None = None, cache: Path | None = None) -> None:
        try:
            import huggingface_hub
            from huggingface_hub import constants
        except ModuleNotFoundError as error:
            raise MedSightError(
                "missing_package",
                "The package huggingface_hub is not installed, and models are pulled with it.",
                "Say: pip install 'medsight[model]'",
            ) from error
        self._library: Any = huggingface_hub
        self._library.logging.set_verbosity_error()  # what goes wrong is said here, once
        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self.cache = Path(cache or constants.HF_HUB_CACHE).expanduser()
        self.offline = bool(constants.is_offline_mode())

    def look(self, repo: str, revision: str) -> tuple[str, list[RemoteFile]]:
        """The commit that a revision means, and the files that it holds.

        Raises:
            InputError: There is no such repository or revision, it is not open to us, or the hub cannot be reached.
        """
        with self._said(repo, revision):
            api = self._library.HfApi(endpoint=self.endpoint, library_name="medsight")
            commit = api.model_info(repo, revision=revision, timeout=SECONDS).sha
            found = [
                RemoteFile(
                    path=entry.path, bytes=entry.size, git=entry.blob_id, sha256=entry.lfs.sha256 if entry.lfs else None
                )
                for entry in api.list_repo_tree(repo, recursive=True, revision=commit)
                if hasattr(entry, "blob_id")
            ]
        strange = [file.path for file in found if not _is_plain(file)]
        if not _COMMIT.fullmatch(commit or ""):
            strange.append(str(commit))
        if strange:
            raise InputError(
                "strange_answer", f"What {self.endpoint} tells about {repo} is not what a hub tells: {strange[0]!r}."
            )
        return commit, found

    def folder(self, repo: str, commit: str) -> Path:
        """Where the files of a commit lie in the cache."""
        return self._storage(repo) / "snapshots" / commit

    def absent_bytes(self, repo: str, commit: str, file: RemoteFile) -> int:
        """How much of a file has still to come."""
        blob = self._storage(repo) / "blobs" / (file.sha256 or file.git)
        if (self.folder(repo, commit) / file.path).exists() or blob.exists():
            return 0
        part = blob.with_name(blob.name + PART)
        return file.bytes - min(file.bytes, part.stat().st_size if part.exists() else 0)

    def fetch(self, repo: str, commit: str, file: RemoteFile, *, came: Callable[[int], None]) -> Path:
        """Brings a file into the cache and makes sure that it is the right one.

        Args:
            repo: ``owner/name``.
            commit: As `look` gave it.
            file: Likewise.
            came: Is told how many bytes came; negative where some have to come again.

        Returns:
            Where it lies.

        Raises:
            InputError: damaged_download, no_space, or as `look`.
        """
        with self._said(repo, commit):
            if file.sha256 is not None and not (self.folder(repo, commit) / file.path).exists():
                self._fetch_large(repo, commit, file, came)
            # Finds a large one in its place and links to it.
            found = Path(
                self._library.hf_hub_download(
                    repo,
                    file.path,
                    revision=commit,
                    cache_dir=self.cache,
                    endpoint=self.endpoint,
                    library_name="medsight",
                    tqdm_class=cast(Any, _silent(came)) if file.sha256 is None else cast(Any, _silent(lambda n: None)),
                )
            )
        git = file.sha256 is None and digest_of(found, start=b"blob %d\0" % found.stat().st_size, kind="sha1")
        if found.stat().st_size != file.bytes or git not in (False, file.git):
            found.resolve().unlink(missing_ok=True)
            found.unlink(missing_ok=True)
            raise _damaged(file, repo)
        return found

    @contextmanager
    def alone(self, repo: str) -> Iterator[None]:
        """Makes sure that no other process pulls from the same repository.

        Raises:
            InputError: in_use.
        """
        from filelock import FileLock, Timeout

        file = self.cache / ".locks" / self._storage(repo).name / "medsight.lock"
        lock = FileLock(file, timeout=0)
        with self._said(repo, ""):
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire()
            except Timeout as error:
                raise InputError("in_use", f"Another process pulls from {repo}.", "Wait until it is done.") from error
        try:
            yield
        finally:
            lock.release()

    def _storage(self, repo: str) -> Path:
        from huggingface_hub.file_download import repo_folder_name

        return self.cache / str(repo_folder_name(repo_id=repo, repo_type="model"))

    def _fetch_large(self, repo: str, commit: str, file: RemoteFile, came: Callable[[int], None]) -> None:
        from huggingface_hub.file_download import http_get

        blob = self._storage(repo) / "blobs" / str(file.sha256)
        if blob.exists():
            return
        part = blob.with_name(blob.name + PART)
        part.parent.mkdir(parents=True, exist_ok=True)
        url = self._library.hf_hub_url(repo, file.path, revision=commit, endpoint=self.endpoint)
        with part.open("ab") as stream:
            if stream.tell() > file.bytes:
                stream.truncate(0)
            http_get(
                url,
                stream,
                resume_size=stream.tell(),
                headers=self._library.utils.build_hf_headers(library_name="medsight") | {"Accept-Encoding": "identity"},
                expected_size=file.bytes,
                displayed_filename=file.path,
                tqdm_class=cast(Any, _silent(came)),
            )
        if digest_of(part) != file.sha256:
            part.unlink()
            raise _damaged(file, repo)
        os.replace(part, blob)

    @contextmanager
    def _said(self, repo: str, revision: str) -> Iterator[None]:
        """Turns what the library raises into sentences."""
        from huggingface_hub import errors

        try:
            yield
        except MedSightError:
            raise
        except errors.GatedRepoError as error:
            raise InputError(
                "gated",
                f"{repo} is given only to those who agreed to its terms.",
                f"Agree to them at {self.endpoint}/{repo}, then set HF_TOKEN to a token of yours.",
            ) from error
        except errors.RevisionNotFoundError as error:
            raise InputError("no_revision", f"{repo} has no revision {revision}.") from error
        except errors.RepositoryNotFoundError as error:
            raise InputError(
                "no_repository",
                f"{self.endpoint} has no repository {repo}, or it is not open to you.",
                "Check its name; where it is private, set HF_TOKEN to a token that may read it.",
            ) from error
        except errors.HfHubHTTPError as error:
            status = getattr(error.response, "status_code", "?")
            token = status in (401, 403)
            raise InputError(
                "no_token" if token else "hub_failed",
                f"{self.endpoint} refused {repo} with status {status}.",
                "Set HF_TOKEN to a token that may read it." if token else "Try again later; what came is kept.",
            ) from error
        except errors.OfflineModeIsEnabled as error:
            raise InputError("offline", "HF_HUB_OFFLINE forbids asking the hub.", "Unset it to pull.") from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise InputError(
                    "no_space",
                    f"{self.cache} is full.",
                    "Make room, or set HF_HOME to another disk; what came is kept.",
                ) from error
            if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
                raise InputError(
                    "bad_output", f"{self.cache} cannot be written.", "Set HF_HOME to a folder that can be."
                ) from error
            raise self._unreachable(error) from error
        except Exception as error:
            if type(error).__module__.split(".")[0] not in ("httpx", "httpx2", "hf_xet", "requests"):
                raise
            raise self._unreachable(error) from error

    def _unreachable(self, error: BaseException) -> InputError:
        reason = " ".join(str(error).split()).split(" (Request ID")[0][:160]
        return InputError(
            "unreachable",
            f"{self.endpoint} cannot be reached, or broke off ({type(error).__name__}: {reason}).",
            "Say the same again to go on: what came is kept. --offline uses what is here.",
        )


def _damaged(file: RemoteFile, repo: str) -> InputError:
    return InputError(
        "damaged_download",
        f"{file.path} of {repo} did not come as it is there: its digest is another one. It was deleted.",
        "Pull again; if it happens again, the mirror or a proxy changes files.",
    )


def _is_plain(file: RemoteFile) -> bool:
    """Whether a file's path stays within its folder and its digests are digests."""
    return (
        file.path.isprintable()
        and not {"\\", ":"} & set(file.path)
        and not {"", ".", ".."} & set(file.path.split("/"))
        and file.bytes >= 0
        and _COMMIT.fullmatch(file.git) is not None
        and (file.sha256 is None or _SHA256.fullmatch(file.sha256) is not None)
    )


def _silent(came: Callable[[int], None]) -> type:
    """What the library takes for a progress bar: it only counts."""

    class Counter:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            pass

        def __enter__(self) -> Counter:
            return self

        def __exit__(self, *details: Any) -> None:
            pass

        def update(self, count: float | None = 1) -> None:
            came(int(count or 0))

        def close(self) -> None:
            pass

    return Counter
