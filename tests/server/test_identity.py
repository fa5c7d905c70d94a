"""Identity stays home: studies full of planted names, dates and numbers leave no trace of them anywhere."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medsight_core.backend import SegmentRequest, Stroke, Whole
from medsight_core.client import RemoteBackend
from medsight_core.errors import MedSightError
from medsight_core.events import Done, Failed
from medsight_core.imaging.volume import Volume, open_volume
from medsight_core.inference.engine import Engine
from medsight_core.inference.scheduler import Scheduler
from medsight_core.regions import Prompt, Question
from medsight_core.wire.volumes import receive
from tests.inference.tiny import save_tiny
from tests.server.canaries import FOLDER, NAME, UID_ROOT, WORD, holds_canaries, leaks, studies
from tests.server.hosting import application, hosted

TOKEN = "a-token-for-the-canary-test"
PATIENT = f"{WORD} {NAME}"


@dataclass
class Recorder:
    """Keeps every byte of every request and response of an application, in the order in which requests came."""

    app: ASGIApp
    requests: list[tuple[str, bytes, bytearray]] = field(default_factory=list)
    responses: list[tuple[str, bytearray]] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        what = f"{scope['method']} {scope['path']}"
        head = (
            scope["raw_path"] + b"?" + scope["query_string"] + b"\n".join(b": ".join(pair) for pair in scope["headers"])
        )
        body, answer = bytearray(), bytearray()
        # Now, and not at the end, at which whoever asked has the answer already and may go on.
        self.requests.append((what, head, body))
        self.responses.append((what, answer))

        async def heard() -> Message:
            message = await receive()
            body.extend(message.get("body", b""))
            return message

        async def said(message: Message) -> None:
            answer.extend(message.get("body", b""))
            answer.extend(b"\n".join(b": ".join(pair) for pair in message.get("headers", ())))
            await send(message)

        await self.app(scope, heard, said)


class LogKeeper(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{logging.Formatter().format(record)} {record.__dict__}")


@dataclass(kw_only=True)
class Run:
    """Everything that a server heard, said, logged and kept."""

    url: str
    recorder: Recorder
    log: LogKeeper
    store: Path
    scratch: Path
    volumes: dict[str, Volume] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def session(self) -> requests.Session:
        session = requests.Session()
        session.headers["Authorization"] = f"Bearer {TOKEN}"
        session.trust_env = False
        return session


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A real server on a tiny model, used by the real client with every study, in right and in wrong ways."""
    folder = tmp_path_factory.mktemp("run")
    scratch = folder / "scratch"
    scratch.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(scratch))
        engine = Engine.from_pretrained(save_tiny(folder / "tiny"), device="cpu")
        scheduler = Scheduler(engine)
        app = application(scheduler, folder / "store", token=TOKEN)
        recorder = Recorder(app)
        log = LogKeeper()
        level = logging.getLogger().level
        logging.getLogger().addHandler(log)
        logging.getLogger().setLevel(logging.DEBUG)
        logging.getLogger("medsight").setLevel(logging.DEBUG)
        try:
            with hosted(app, around=lambda app: recorder, token=TOKEN) as url:
                made = Run(url=url, recorder=recorder, log=log, store=folder / "store", scratch=scratch)
                for kind, path in studies(folder / "studies"):
                    assert holds_canaries(path), kind
                    made.volumes[kind] = open_volume(path)
                _use(made)
                yield made
        finally:
            logging.getLogger().removeHandler(log)
            logging.getLogger().setLevel(level)
            scheduler.close()


def _use(run: Run) -> None:
    backend = RemoteBackend(run.url, token=TOKEN)
    backend.info()
    for volume in run.volumes.values():
        k = volume.middle
        _finish(
            run, backend.ask(Question(text="Segment the left lung.", volume=volume, slice_index=k), max_new_tokens=9)
        )
        middle = volume.slice_frame(k).to_lps([(0, *(n // 2 for n in volume.array.shape[1:3]))])
        stroke = Stroke(slice_index=k, prompt=Prompt(kind="point", points=middle))
        _finish(run, backend.segment(SegmentRequest(volume=volume, slice_index=k, strokes=(stroke,))))
        _finish(run, backend.segment(SegmentRequest(volume=volume, slice_index=k, strokes=(stroke,), whole=True)))
        _finish(
            run, backend.ask(Question(text="Where is it?", volume=volume, slice_index=k), whole=Whole(slices=range(1)))
        )
        outside = Prompt(kind="point", points=middle + 1e6 * volume.slice_frame(k).direction[:, 2])
        _finish(
            run,
            backend.segment(
                SegmentRequest(volume=volume, slice_index=k, strokes=(Stroke(slice_index=k, prompt=outside),))
            ),
        )
    for token in (None, "another-token-of-some-length"):
        _failing(run, lambda token=token: RemoteBackend(run.url, token=token).open(run.volumes["ct"]))
    # A server that has forgotten, and one that was cut off.
    for path in run.store.glob("*"):
        path.write_bytes(path.read_bytes()[:100])
    _finish(
        run, RemoteBackend(run.url, token=TOKEN).ask(Question(text="Again?", volume=run.volumes["ct"], slice_index=0))
    )
    _failing(run, lambda: RemoteBackend("127.0.0.1:9", token=TOKEN).open(run.volumes["ct"]))


def _finish(run: Run, stream: Any) -> None:
    with suppress(MedSightError):
        try:
            last = list(stream)[-1]
            assert isinstance(last, Done | Failed)
            if isinstance(last, Failed):
                run.errors.append(str(last))
        except MedSightError as error:
            run.errors.append(f"{error!r} {error}")


def _failing(run: Run, call: Any) -> None:
    with pytest.raises(MedSightError) as caught:
        call()
    run.errors.append(f"{caught.value!r} {caught.value}")


def uploads(run: Run) -> list[bytes]:
    return [bytes(body) for what, _, body in run.recorder.requests if what.startswith("PUT /v1/volumes/") and body]


def test_the_planted_values_would_be_found() -> None:
    for text in (PATIENT, NAME, f"x{UID_ROOT}.5", "born 18430217", "1843-05-29", json.dumps(NAME), WORD.upper()):
        assert leaks(text), text
        assert leaks(text.encode("latin-1")), text
    assert not leaks(json.dumps({"origin": [0.184302171, 777.1], "id": "7f18430217ab"}))


def test_the_server_was_really_used(run: Run) -> None:
    asked = [what for what, _, _ in run.recorder.requests]
    assert len({len(body) for body in uploads(run)}) >= len(run.volumes)
    assert asked.count("POST /v1/chat/completions") >= 2 * len(run.volumes)
    assert asked.count("POST /v1/segment") >= 2 * len(run.volumes)
    assert len(run.errors) > len(run.volumes)
    assert any("prompt_outside" in error for error in run.errors)
    assert any("unauthorized" in error for error in run.errors)


def test_nothing_is_sent_but_pixels_and_geometry(run: Run) -> None:
    for what, head, body in run.recorder.requests:
        assert not leaks(head), what
        assert not leaks(body), what


def test_nothing_is_hidden_inside_what_is_compressed(run: Run) -> None:
    seen = 0
    for body in uploads(run):
        volume = receive([body], digest=None, limit_bytes=2**30)
        assert not leaks(volume.array.tobytes())
        assert not leaks(repr((volume.source, volume.warnings, volume.problem, volume.modality)))
        assert volume.source.paths == () and not volume.source.description and volume.source.series_uid is None
        seen += 1
    assert seen >= len(run.volumes)


def test_the_pixels_are_those_of_the_study(run: Run) -> None:
    arrived = [receive([body], digest=None, limit_bytes=2**30).array for body in uploads(run)]
    for kind, volume in run.volumes.items():
        assert any(np.array_equal(volume.array, array) for array in arrived), kind


def test_no_response_knows_the_patient(run: Run) -> None:
    for what, answer in run.recorder.responses:
        assert not leaks(answer), what


def test_no_error_names_the_patient(run: Run) -> None:
    for error in run.errors:
        assert not leaks(error)


def test_nothing_is_logged(run: Run) -> None:
    assert any("POST /v1/segment" in line for line in run.log.lines)
    ours = [line for line in run.log.lines if "'name': 'medsight" in line or "'name': 'uvicorn" in line]
    assert not leaks("\n".join(ours))


def test_figures_know_routes_and_codes_only(run: Run) -> None:
    page = run.session().get(f"{run.url}/metrics", timeout=10)
    assert page.status_code == 200 and "medsight_requests_total" in page.text
    assert not leaks(page.content)


def test_no_file_of_the_server_holds_anything(run: Run) -> None:
    files = [path for path in run.store.rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        assert not leaks(content) and not leaks(path.name)
        if len(content) > 100:
            assert not leaks(receive([content], digest=None, limit_bytes=2**30).array.tobytes())
    assert not list(run.scratch.rglob("*")), "temporary files were left behind"


STRAY = [
    ("GET", f"/v1/volumes/{PATIENT}", {}),
    ("HEAD", f"/v1/volumes/{UID_ROOT}", {}),
    ("PUT", f"/v1/volumes/{WORD}", {"data": PATIENT.encode()}),
    ("PUT", "/v1/volumes/" + "a" * 64, {"data": PATIENT.encode()}),
    ("GET", f"/v1/masks/{WORD}.nii.gz", {"params": {"patient": NAME}}),
    ("GET", f"/{FOLDER}/{WORD}.dcm", {}),
    (WORD.upper(), "/v1/models", {}),
    ("GET", "/v1/models", {"headers": {"X-Patient": WORD, "User-Agent": WORD, "X-Request-Id": WORD}}),
    ("GET", "/v1/models", {"headers": {"Host": f"{WORD}.example"}}),
    ("GET", "/v1/models", {"headers": {"Origin": f"http://{WORD}.example"}}),
    ("GET", "/v1/models", {"headers": {"Authorization": f"Bearer {WORD}"}}),
    ("GET", "/v1/models", {"headers": {"MedSIGHT-Protocol": WORD}}),
    ("POST", "/v1/chat/completions", {"json": {"messages": [{"role": WORD, "content": PATIENT}]}}),
    ("POST", "/v1/chat/completions", {"json": {"messages": [{"role": "user", "content": [{"type": WORD}]}]}}),
    ("POST", "/v1/chat/completions", {"json": {"messages": [{"role": "user", "content": PATIENT}], "model": WORD}}),
    ("POST", "/v1/chat/completions", {"json": {"messages": [{"role": "user", "content": PATIENT}]}}),
    ("POST", "/v1/chat/completions", {"json": {WORD: PATIENT}}),
    (
        "POST",
        "/v1/chat/completions",
        {"data": f'{{"{WORD}": '.encode(), "headers": {"Content-Type": "application/json"}},
    ),
    (
        "POST",
        "/v1/chat/completions",
        {"json": {"messages": [{"role": "user", "content": PATIENT}], "medsight": {"volume": WORD, WORD: PATIENT}}},
    ),
    (
        "POST",
        "/v1/chat/completions",
        {
            "json": {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": PATIENT},
                            {"type": "image_url", "image_url": {"url": f"http://{WORD}.example/{WORD}.png"}},
                        ],
                    }
                ]
            }
        },
    ),
    (
        "POST",
        "/v1/chat/completions",
        {
            "json": {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{WORD}"}}],
                    }
                ]
            }
        },
    ),
    ("POST", "/v1/segment", {"json": {"volume": "a" * 64, WORD: PATIENT, "text": PATIENT}}),
    ("POST", "/v1/segment", {"json": {"volume": WORD}}),
    ("POST", "/v1/segment", {"json": [PATIENT]}),
    ("GET", f"/session/{WORD}", {}),
    ("DELETE", f"/session/{WORD}", {}),
    ("PUT", "/session/", {"files": {"files": (f"{WORD}.nii.gz", PATIENT.encode())}, "data": {"client_id": WORD}}),
    ("PUT", "/session/", {"files": {WORD: (f"{WORD}.nii.gz", b"x")}, "params": {"expiry": WORD}}),
    ("POST", f"/infer/{WORD}", {"params": {"image": PATIENT}, "files": {"params": (None, "{}")}}),
    (
        "POST",
        "/infer/medsight-named",
        {"params": {"image": PATIENT}, "files": {"params": (None, f'{{"label": "{WORD}"}}')}},
    ),
    ("POST", "/infer/medsight-named", {"params": {"image": "x", "output": WORD}, "files": {"params": (None, WORD)}}),
    ("POST", "/auth/token", {"data": {"username": PATIENT, "password": WORD}}),
    ("POST", "/auth/token", {"data": {"username": PATIENT}}),
]


@pytest.mark.parametrize(("method", "path", "options"), STRAY, ids=[f"{n}-{what[0]}" for n, what in enumerate(STRAY)])
def test_a_request_that_names_the_patient_is_neither_repeated_nor_logged(
    run: Run, method: str, path: str, options: dict[str, Any]
) -> None:
    """By mistake or on purpose: in the address, in headers, in names of fields, in values."""
    lines = len(run.log.lines)
    reply = run.session().request(method, run.url + path, timeout=30, allow_redirects=False, **options)
    assert reply.status_code < 500, reply.text
    assert not leaks(reply.content)
    assert not leaks(str(reply.headers))
    assert not leaks("\n".join(line for line in run.log.lines[lines:] if "urllib3" not in line))


def test_the_names_of_strangers_are_in_no_figure(run: Run) -> None:
    """Behind `STRAY`, or by itself."""
    session = run.session()
    for method in (WORD.upper(), "GET"):
        session.request(method, f"{run.url}/{WORD}/{NAME}", timeout=10)
    assert not leaks(session.get(f"{run.url}/metrics", timeout=10).content)


def test_an_image_of_monai_label_leaves_nothing_but_pixels(run: Run) -> None:
    nifti = next(path for path in run.store.parent.rglob(f"{WORD}.nii.gz"))
    session = run.session()
    before = len(run.recorder.responses)
    with nifti.open("rb") as file:
        made = session.put(
            f"{run.url}/session/", files={"files": (nifti.name, file)}, data={"client_id": WORD}, timeout=30
        )
    assert made.status_code == 200, made.text
    for params in ({"foreground": [[9, 9, 2]]}, {"foreground": [[9, 9, 99]]}, {WORD: PATIENT}):
        session.post(
            f"{run.url}/infer/medsight-click-volume",
            params={"image": PATIENT, "session_id": made.json()["session_id"]},
            files={"params": (None, json.dumps(params))},
            timeout=60,
        )
    with nifti.open("rb") as file:
        session.put(
            f"{run.url}/datastore/", params={"image": f"{UID_ROOT}.5"}, files={"file": (nifti.name, file)}, timeout=30
        )
    said = run.recorder.responses[before:]
    assert len(said) == 5
    for what, answer in said:
        assert not leaks(answer), what
    assert not list(run.scratch.rglob("*")), "temporary files were left behind"
