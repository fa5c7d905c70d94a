"""Thousands of requests that nobody would send, to a real application in this process, without a socket.

    python -m tests.server.fuzz --requests 10000 --seed 1

Half of them follow the application's own OpenAPI schema, rightly and wrongly (schemathesis); the other half are good
requests that were damaged: JSON with other values, bytes with other bits. None may end in a defect of ours, hang, or
show a trace of the code.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import faulthandler
import gzip
import json
import random
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import nibabel
import numpy as np
import requests
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis.errors import Unsatisfiable
from schemathesis.generation import GenerationMode

from medsight_core.inference.engine import Engine
from medsight_core.inference.scheduler import Scheduler
from medsight_core.wire.volumes import chunks_of, digest_of
from tests.inference.tiny import save_tiny, stack
from tests.server.hosting import application
from tests.server.running import data_url, picture

SLOWEST: Final = 5.0
"""Seconds that a request may take on a machine that has nothing else to do."""

STUCK: Final = 120
"""Seconds after which a request counts as hanging for good: the program shows where, and ends."""

OURS: Final = frozenset({"internal_error", "failed", "stream_ended", "not_implemented"})
"""Codes of errors that are no fault of the request."""

ROUNDS: Final = 20
"""Over all operations of the schema, at most."""

GOOD: Final = 12
"""So many of the good requests, from the first on, are answered well."""

TRACES: Final = ("Traceback (most recent", 'File "', "site-packages", "medsight_core/")

ODD: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**21, 1e308, -1e-308, 0.5, "", " ", "0", "null", "\0", "\ud800",
    "a" * 5000, "../../etc/passwd", "http://192.0.2.1/", "𝕳é", [], {}, [[]], [None], {"": None}, [0] * 300, "0" * 64,
)  # fmt: skip


@dataclass
class Tally:
    """What came of the requests.

    Attributes:
        outcomes: By method, route, status and code.
        defects: What should never happen, with the request that led to it.
        slow: Requests beyond `SLOWEST`.
        slowest: Seconds.
    """

    outcomes: Counter[tuple[str, str, int, str]] = field(default_factory=Counter)
    defects: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)
    slowest: float = 0.0

    @property
    def requests(self) -> int:
        """How many there were."""
        return self.outcomes.total()


@dataclass(frozen=True, kw_only=True)
class Seed:
    """A good request."""

    method: str
    path: str
    json: Any = None
    content: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    files: dict[str, Any] | None = None


class Fuzz:
    """Sends requests to an application and looks at what comes back.

    Args:
        client: Of the application.
    """

    def __init__(self, client: TestClient) -> None:
        self.client = client
        self.tally = Tally()

    def send(self, method: str, url: str, **options: Any) -> httpx.Response | None:
        """One request; None where it is none that a client could send."""
        try:
            request = self.client.build_request(method, url, **options)
        except Exception:  # an address or a header that no client can write
            return None
        faulthandler.dump_traceback_later(STUCK, exit=True)
        start = time.perf_counter()
        response = self.client.send(request)
        spent = time.perf_counter() - start
        faulthandler.cancel_dump_traceback_later()
        self._look(request, response, spent)
        return response

    def _look(self, request: httpx.Request, response: httpx.Response, spent: float) -> None:
        what = f"{request.method} {str(request.url)[:200]} -> {response.status_code} {response.text[:300]!r}"
        codes = _codes(response)
        parts = request.url.path.split("/")
        route = "/" + "/".join(parts[1:3])
        self.tally.outcomes[request.method[:8], route[:40], response.status_code, codes[-1] if codes else ""] += 1
        self.tally.slowest = max(self.tally.slowest, spent)
        if spent > SLOWEST:
            self.tally.slow.append(f"{spent:.1f} s {what}")
        unnamed = response.status_code >= 400 and request.method != "HEAD" and not codes
        if response.status_code == 500 or OURS & set(codes) or unnamed or any(word in response.text for word in TRACES):
            self.tally.defects.append(f"{what} body {_body(request)!r}")


def _codes(response: httpx.Response) -> list[str]:
    """The codes of the errors in a response: of a problem, or at the end of a stream."""
    kind = response.headers.get("content-type", "") if response.content else ""
    if kind.startswith("application/problem+json"):
        return [str(response.json()["code"])]
    if not kind.startswith("text/event-stream"):
        return []
    events = [line[6:] for line in response.text.splitlines() if line.startswith("data: {")]
    contents = [json.loads(event) for event in events]
    ours = [content.get("medsight", content) for content in contents]
    return [str(one["code"]) for one in ours if isinstance(one, dict) and one.get("type") == "failed"]


def _body(request: httpx.Request) -> bytes:
    with contextlib.suppress(httpx.RequestNotRead):
        return request.content[:600]
    return b""


# --- by the schema ---------------------------------------------------------------------------------------------------


def by_schema(fuzz: Fuzz, openapi: dict[str, Any], *, count: int, seed: int) -> None:
    """Requests that follow the schema, and requests that do not.

    Some operations have no more than one of either kind, so that it takes several rounds.
    """
    schema = schemathesis.openapi.from_dict(openapi)
    operations = [result.ok() for result in schema.get_all_operations()]
    enough = fuzz.tally.requests + count
    for number in range(ROUNDS):
        each = (enough - fuzz.tally.requests) // (2 * len(operations)) + 1
        for operation in operations:
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                if fuzz.tally.requests < enough:
                    _ask_for(fuzz, operation, mode, count=each, seed=seed + number)


def _ask_for(fuzz: Fuzz, operation: Any, mode: GenerationMode, *, count: int, seed: int) -> None:
    try:
        strategy = operation.as_strategy(generation_mode=mode)
    except Exception:  # what takes nothing cannot be asked wrongly
        return

    @seeded(seed)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def run(case: Any) -> None:
        _send_case(fuzz, case)

    with contextlib.suppress(Unsatisfiable):  # there is nothing of that kind; what was sent is counted
        run()


def _send_case(fuzz: Fuzz, case: Any) -> None:
    try:
        options = case.as_transport_kwargs(base_url=str(fuzz.client.base_url))
        options.pop("verify", None)
        options.pop("timeout", None)
        wanted = requests.Request(**{k: v for k, v in options.items() if k in _REQUEST_OPTIONS}).prepare()
    except (ValueError, TypeError, UnicodeError, requests.RequestException):
        return
    headers = {name: value for name, value in wanted.headers.items() if name.lower() != "host"}
    fuzz.send(wanted.method or "GET", str(wanted.url), headers=headers, content=wanted.body or b"")


_REQUEST_OPTIONS: Final = {"method", "url", "headers", "files", "data", "params", "cookies", "json"}


# --- good requests, damaged ------------------------------------------------------------------------------------------


def good_requests() -> list[Seed]:
    """One of every kind; the volume that they are about comes first."""
    volume = stack(np.random.default_rng(0).integers(0, 1500, (4, 20, 24)).astype(np.int16))
    digest, upload = digest_of(volume), b"".join(chunks_of(volume))
    point = volume.slice_frame(1).to_lps([0, 10, 12]).tolist()
    box = volume.slice_frame(1).to_lps([[0, 3, 4], [0, 12, 13]]).tolist()
    strokes = [{"slice": 1, "kind": "point", "points": [point]}, {"slice": 1, "kind": "box", "points": box}]
    words = {"role": "user", "content": "Segment the left lung."}
    earlier = [{"role": "user", "content": "Is there a polyp?"}, {"role": "assistant", "content": "No.[C0_1]"}]
    prompts = [{key: value for key, value in stroke.items() if key != "slice"} for stroke in strokes]
    about = {"volume": digest, "slice": 1, "prompts": prompts}
    whole = {"volume": digest, "slice": 1, "whole": {"plane": "axial", "slices": [1, 3], "exact": False, "shown": 1}}
    shown = {"type": "image_url", "image_url": {"url": data_url(picture(16, 20))}}
    with_picture = {"role": "user", "content": [{"type": "text", "text": "What is this?"}, shown]}
    image = nibabel.Nifti1Image(volume.array.T, np.diag([0.7, 0.8, 3, 1]))
    nifti = gzip.compress(image.to_bytes(), mtime=0)
    clicks = json.dumps({"foreground": [[12, 10, 1]], "background": [[1, 1, 1]], "slice": 1})
    files = {"file": ("a.nii.gz", nifti), "params": (None, clicks)}
    return [
        Seed(method="PUT", path=f"/v1/volumes/{digest}", content=upload),
        Seed(method="HEAD", path=f"/v1/volumes/{digest}"),
        Seed(method="POST", path=_CHAT, json={"messages": [words], "medsight": about, "max_tokens": 8}),
        Seed(method="POST", path=_CHAT, json={"messages": [*earlier, words], "medsight": about, "stream": True}),
        Seed(method="POST", path=_CHAT, json={"messages": [with_picture], "max_tokens": 8, "stream": True}),
        Seed(method="POST", path=_CHAT, json={"messages": [words], "medsight": whole, "max_tokens": 8}),
        Seed(method="POST", path="/v1/segment", json={"volume": digest, "slice": 1, "strokes": strokes}),
        Seed(method="POST", path="/v1/segment", json={"volume": digest, "slice": 1, "strokes": strokes, "whole": True}),
        Seed(
            method="POST",
            path="/v1/segment",
            json={"volume": digest, "slice": 1, "text": "left lung", "whole": True, "slices": [0, 3]},
            headers={"Accept": "text/event-stream"},
        ),
        Seed(method="PUT", path="/session/", files={"files": ("a.nii.gz", nifti)}),
        Seed(method="POST", path="/infer/medsight-click-volume?image=a", files=files),
        Seed(method="POST", path="/infer/medsight-click-slice?image=a&output=image", files=files),
        Seed(method="GET", path="/v1/masks/abc.nii.gz"),
        Seed(method="POST", path="/auth/token", content=b"username=a&password=b", headers={"Content-Type": _FORM}),
    ]


_CHAT: Final = "/v1/chat/completions"
_FORM: Final = "application/x-www-form-urlencoded"


def by_damage(fuzz: Fuzz, *, count: int, seed: int) -> None:
    """Good requests as they are, then damaged ones."""
    rng = random.Random(seed)
    good = good_requests()
    for one in good:
        _send(fuzz, one)
    weights = [6 if one.json else 3 if one.content else 2 for one in good]
    while fuzz.tally.requests < count:  # some cannot be sent at all
        one = rng.choices(good, weights)[0]
        _send(fuzz, damaged(one, rng))


def _send(fuzz: Fuzz, one: Seed) -> httpx.Response | None:
    headers, content = dict(one.headers), one.content
    if one.json is not None:
        headers["Content-Type"] = "application/json"
        content = json.dumps(one.json).encode("utf-8", "surrogatepass")
    if one.files is not None:
        return fuzz.send(one.method, one.path, files=one.files, headers=headers)
    return fuzz.send(one.method, one.path, content=content, headers=headers)


def damaged(one: Seed, rng: random.Random) -> Seed:
    """A request with one to three things wrong."""
    changes: dict[str, Any] = {"method": one.method, "path": one.path, "headers": dict(one.headers)}
    changes |= {"json": copy.deepcopy(one.json), "content": one.content, "files": one.files}
    for _ in range(rng.choice((1, 1, 2, 3))):
        kind = rng.random()
        if kind < 0.05:
            changes["path"] = _bytes_changed(one.path.encode(), rng).decode("latin-1").replace(" ", "%20")
        elif kind < 0.08:
            changes["method"] = rng.choice(["GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "HEAD"])
        elif kind < 0.12:
            name = rng.choice(["Accept", "Content-Type", "Content-Encoding", "MedSIGHT-Protocol", "Range", "Expect"])
            changes["headers"][name] = rng.choice(["", "0", "1", "text/plain", "gzip", "bytes=0-1", "a" * 5000, "*/*"])
        elif changes["json"] is not None:
            if kind < 0.2:
                text = json.dumps(changes["json"]).encode("utf-8", "surrogatepass")
                changes |= {"json": None, "content": _bytes_changed(text, rng)}
                changes["headers"].setdefault("Content-Type", "application/json")
            else:
                changes["json"] = _tree_changed(changes["json"], rng)
        elif changes["content"]:
            changes["content"] = _bytes_changed(changes["content"], rng)
        elif changes["files"]:
            changes["files"] = dict(changes["files"])
            name = rng.choice(list(changes["files"]))
            file_name, content = changes["files"][name]
            if file_name is not None:
                content = _nifti_changed(content, rng)
            else:
                try:
                    content = json.dumps(_tree_changed(json.loads(content), rng))
                except ValueError:  # damaged before
                    content = "{"
            changes["files"][name] = (file_name, content)
    return Seed(**changes)


def _tree_changed(tree: Any, rng: random.Random) -> Any:
    """A JSON value with one of its parts replaced, removed, repeated or moved."""
    places = list(_places(tree))
    if not places:
        return copy.deepcopy(rng.choice(ODD))
    holder, key = rng.choice(places)
    kind = rng.random()
    if kind < 0.55:
        old = holder[key]
        near = [old + 1, old - 1, -old, old * 1000, old / 3] if isinstance(old, int | float) else []
        holder[key] = copy.deepcopy(rng.choice([*near, *ODD]))
    elif kind < 0.75:
        del holder[key]
    elif isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    else:
        holder[rng.choice(["", "x", "volume", "slice", "kind", "points", "mask", "shape"])] = copy.deepcopy(holder[key])
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    keys = tree.keys() if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in list(keys):
        yield tree, key
        yield from _places(tree[key])


def _bytes_changed(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if not changed:
            break
        # The beginning of a file says what all the rest means.
        at = rng.randrange(min(len(changed), 64) if rng.random() < 0.5 else len(changed))
        kind = rng.random()
        if kind < 0.6:
            changed[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        elif kind < 0.75:
            del changed[at : at + rng.choice((1, 4, 100))]
        elif kind < 0.9:
            changed[at:at] = rng.randbytes(rng.choice((1, 4, 100)))
        else:
            del changed[at:]
    return bytes(changed)


def _nifti_changed(content: bytes, rng: random.Random) -> bytes:
    """Damages what is inside a compressed file as often as the file itself."""
    try:
        inside = bytearray(gzip.decompress(content))
    except (OSError, EOFError, zlib.error):
        inside = bytearray()
    if len(inside) < 348 or rng.random() < 0.3:
        return _bytes_changed(content, rng)
    for _ in range(rng.choice((1, 2, 4))):
        inside[rng.randrange(348)] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    return gzip.compress(bytes(inside), compresslevel=1, mtime=0)


# --- both ------------------------------------------------------------------------------------------------------------


def fuzz_application(*, count: int, seed: int, tell: Callable[[str], object] = lambda line: None) -> Tally:
    """Sends so many requests to an application with a real, tiny model.

    Args:
        count: How many, about.
        seed: The same one gives the same requests.
        tell: Is told what is going on.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # schemathesis and httpx remark on what is odd, which all of this is
        scheduler = Scheduler(Engine.from_pretrained(save_tiny(Path(folder) / "tiny"), device="cpu"))
        try:
            app = application(scheduler, Path(folder) / "store", limit_bytes=2**22)
            with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
                fuzz = Fuzz(client)
                tell("damaged requests")
                by_damage(fuzz, count=count // 2, seed=seed)
                tell(f"{fuzz.tally.requests} sent; requests by the schema")
                by_schema(fuzz, app.openapi(), count=count - count // 2, seed=seed)
                tell(f"{fuzz.tally.requests} sent; good requests once more")
                for one in good_requests()[:GOOD]:
                    response = _send(fuzz, one)
                    if response is None or response.status_code >= 400:
                        fuzz.tally.defects.append(f"{one.method} {one.path} went well before, and does not now")
                return fuzz.tally
        finally:
            scheduler.close()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    start = time.perf_counter()
    tally = fuzz_application(count=chosen.requests, seed=chosen.seed, tell=lambda line: sys.stderr.write(f"{line}\n"))
    lines = [f"{count:6d}  {' '.join(map(str, outcome))}" for outcome, count in tally.outcomes.most_common(60)]
    lines += [f"DEFECT {one}" for one in tally.defects[:50]]
    lines += [f"SLOW {one}" for one in tally.slow[:20]]
    statuses = Counter(status for _, _, status, _ in tally.outcomes.elements())
    lines.append(
        f"{tally.requests} requests in {time.perf_counter() - start:.0f} s, slowest {tally.slowest:.2f} s; "
        f"{len(tally.defects)} defects, {len(tally.slow)} slow; statuses {dict(sorted(statuses.items()))}"
    )
    sys.stdout.write("\n".join(lines) + "\n")
    sys.exit(bool(tally.defects))


if __name__ == "__main__":
    main()
