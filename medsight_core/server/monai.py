"""The REST interface of MONAI Label, so that its clients for 3D Slicer and OHIF can use a MedSIGHT server as it is.

Three models are offered: one that is told names, and two that are clicked on, for a slice and for the whole volume. A
client sends its image as NIfTI, speaks in voxels (i, j, k) of that file, and gets a label map on the file's own grid.
What these clients do was read in MONAI Label 0.8.5 (monailabel/client/client.py and the two plugins).
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import anyio
import numpy as np
from anyio import to_thread
from fastapi import APIRouter, File, Form, Query, Request, Response, UploadFile
from numpy.typing import NDArray

from medsight_core.backend import Backend, Info, SegmentRequest, Stroke
from medsight_core.errors import InputError
from medsight_core.events import fold
from medsight_core.imaging.planes import Reformatted
from medsight_core.regions import Answer
from medsight_core.server.logs import CLIENT_GONE
from medsight_core.server.monai_masks import MOST_LABELS, check_ending, label_map, label_map_file, multipart
from medsight_core.server.monai_uploads import EXPIRY, Upload, Uploads, Voxel, check_uid, read_upload
from medsight_core.server.work import Work
from medsight_core.wire import checked

NAMED: Final = "medsight-named"
SLICE: Final = "medsight-click-slice"
VOLUME: Final = "medsight-click-volume"

UPLOAD_BYTES: Final = 2**30
"""Largest file that is taken."""

LOGIN_BYTES: Final = 2**14
"""Largest body of whoever is not let in yet."""

READ_AT_ONCE: Final = 2
"""Files that are unpacked at the same time; each takes the memory of its volume."""

MOST_POINTS: Final = 256

Output = Literal["image", "json", "all"]


def monai_router(
    backend: Backend, work: Work, *, token: str | None = None, uploads: Uploads | None = None
) -> APIRouter:
    """The routes.

    Args:
        backend: Who segments.
        work: The answers of the application, which these count among.
        token: What a client says to be let in; its users type it as their password.
        uploads: Where images are held.
    """
    held = uploads or Uploads()
    reading = anyio.CapacityLimiter(READ_AT_ONCE)
    router = APIRouter(tags=["MONAI Label"])

    async def received(file: UploadFile) -> Upload:
        limit = held.limit_bytes
        return await to_thread.run_sync(lambda: read_upload(file.file, limit_bytes=limit), limiter=reading)

    @router.get("/info/")
    def info() -> dict[str, Any]:
        """What there is to choose from."""
        return describe(backend.info())

    @router.get("/auth/")
    def auth() -> dict[str, Any]:
        """Whether a login is needed."""
        return {"enabled": token is not None, "client_id": "", "realm": ""}

    @router.post("/auth/token", max_body_size=LOGIN_BYTES)
    def log_in(password: Annotated[str, Form(max_length=4096)]) -> dict[str, str]:
        """Takes the server's token as the password of any user, and gives it back as what to send."""
        if token is None or not secrets.compare_digest(password.encode("utf-8", "replace"), token.encode()):
            raise InputError("unauthorized", "The token is missing or wrong.", "Type the server's token as password.")
        return {"access_token": token, "token_type": "bearer"}

    @router.get("/auth/token/valid")
    def logged_in() -> dict[str, Any]:
        """Whoever gets here was let in."""
        return {}

    @router.put("/session/", max_body_size=UPLOAD_BYTES)
    async def create_session(
        files: Annotated[list[UploadFile], File()], expiry: Annotated[int, Query(ge=0, le=int(EXPIRY))] = 0
    ) -> dict[str, Any]:
        """Receives an image and keeps it for a while."""
        if len(files) != 1:
            raise InputError("several_files", f"{len(files)} files were sent.", "Send one NIfTI file.")
        session = held.add(await received(files[0]), expiry=expiry)
        return {"session_id": session, "session_info": held.describe(session)}

    @router.get("/session/{session_id}")
    def get_session(session_id: str) -> dict[str, Any]:
        """About a session; empty where it has expired, for then the client in 3D Slicer sends its image again."""
        return held.describe(session_id)

    @router.delete("/session/{session_id}")
    def remove_session(session_id: str) -> dict[str, Any]:
        """Forgets an image."""
        held.get(session_id)
        about = held.describe(session_id)
        held.remove(session_id)
        return about

    @router.put("/datastore/", max_body_size=UPLOAD_BYTES)
    async def upload_image(
        file: Annotated[UploadFile, File()], image: Annotated[str, Query(min_length=1, max_length=1024)]
    ) -> dict[str, Any]:
        """Receives an image that is asked about by the UID of its series, as OHIF does."""
        uid = check_uid(image)
        held.add(await received(file), name=uid)
        return {}

    @router.post("/infer/{model}", response_class=Response, max_body_size=UPLOAD_BYTES)
    async def infer(
        request: Request,
        model: str,
        image: Annotated[str, Query(max_length=1024)] = "",
        session_id: Annotated[str, Query(max_length=1024)] = "",
        output: Output = "all",
        params: Annotated[str, Form()] = "{}",
        file: Annotated[UploadFile | None, File()] = None,
        label: Annotated[UploadFile | None, File()] = None,
    ) -> Response:
        """Segments, and answers with a label map and its parameters."""
        said = read_params(params)
        ending = check_ending(said.get("result_extension") or ".nii.gz")
        plan_of = _planner(model)
        if label is not None:
            raise InputError("label_not_read", "None of the models reads a label map.", "Click, or choose a name.")
        if session_id:
            upload = held.get(session_id)
        elif file is not None:
            upload = await received(file)
        else:
            upload = held.named(image)
        plan = plan_of(said, upload, backend.info())
        start = time.perf_counter()
        boundary = secrets.token_hex(16)
        media_types = {
            "json": "application/json",
            "image": "application/octet-stream",
            "all": f"multipart/form-data; boundary={boundary}",
        }

        def begin(cancel: threading.Event) -> Iterator[bytes]:
            answers = {value: fold(backend.segment(wanted, cancel=cancel)) for value, wanted in plan.requests.items()}
            labels = label_map(upload, answers, plan.cut)
            described = describe_answers(answers, plan, labels, seconds=time.perf_counter() - start)
            if output == "json":
                yield json.dumps(described).encode()
                return
            made = label_map_file(upload, labels, ending, compress=said.get("result_compress") is not False)
            yield made.data if output == "image" else multipart(described, made, boundary=boundary)

        body = None
        async with work.run(begin, request.receive) as items:
            async for item in items:
                if isinstance(item, Exception):
                    raise item
                body = item or body  # now and then there is a mere sign of life
        if body is None:
            return Response(status_code=CLIENT_GONE)
        return Response(body, media_type=media_types[output])

    return router


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be segmented.

    Attributes:
        requests: By the value that their regions get in the label map.
        cut: The volume they are about.
        names: Of the values, where they have any.
    """

    requests: Mapping[int, SegmentRequest]
    cut: Reformatted
    names: Mapping[int, str]


def describe(info: Info) -> dict[str, Any]:
    """What a client of MONAI Label learns about a backend; models that it cannot do are not offered."""
    names = info.classes[:MOST_LABELS]
    click = "Click on a structure"
    models = {
        NAMED: {
            "type": "segmentation",
            "labels": {name: value for value, name in enumerate(names, start=1)},
            "dimension": 3,
            "description": "Choose a structure by its name; it is segmented throughout the volume.",
            "config": {"label": list(names)},
        },
        SLICE: {"type": "deepgrow", "labels": [], "dimension": 2, "description": f"{click} on a slice.", "config": {}},
        VOLUME: {
            "type": "deepgrow",
            "labels": [],
            "dimension": 3,
            "description": f"{click}; it is followed through the volume.",
            "config": {},
        },
    }
    if not names:
        del models[NAMED]
    if "prompts" not in info.capabilities:
        del models[SLICE], models[VOLUME]
    return {
        "name": "MedSIGHT",
        "description": f"{info.model}. For research, not for diagnosis.",
        "version": info.version,
        "labels": list(names),
        "models": models,
        "trainers": {},
        "strategies": {},
        "scoring": {},
        "train_stats": {},
        "datastore": {},
    }


def read_params(text: str) -> dict[str, Any]:
    """The parameters of a request; fields that mean nothing here are left alone, for clients send many.

    Raises:
        InputError: bad_json, bad_request.
    """
    try:
        said = json.loads(text or "{}", parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise InputError("bad_json", 'The field "params" is no valid JSON.', "Send an object, such as {}.") from error
    return checked.record(said, 'The field "params"', optional=None)


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


Planner = Callable[[Mapping[str, Any], Upload, Info], Plan]


def _planner(model: str) -> Planner:
    planners: Mapping[str, Planner] = {NAMED: _named, SLICE: _on_slice, VOLUME: _in_volume}
    if model not in planners:
        raise InputError("model_not_found", "There is no such model here.", f"Choose one of {', '.join(planners)}.")
    return planners[model]


def _named(said: Mapping[str, Any], upload: Upload, info: Info) -> Plan:
    """What was chosen by name (``label``: one or several) or by number (``label_prompt``, as OHIF says it)."""
    names = info.classes[:MOST_LABELS]
    if said.get("label_prompt") is not None:
        given = checked.listed(said["label_prompt"], "label_prompt", most=len(names))
        values = [checked.integer(one, "A number of label_prompt", low=1, high=len(names)) for one in given]
    else:
        label = said.get("label")
        given = checked.listed(label if isinstance(label, list) else [label], "label", most=len(names))
        values = [names.index(checked.one_of(one, "label", names)) + 1 for one in given]
    if not values:
        raise InputError("nothing_asked", "Nothing says what to segment.", 'Choose a structure with "label".')
    volume = upload.volume
    requests = {
        value: SegmentRequest(
            volume=volume, slice_index=volume.middle, text=names[value - 1], whole=volume.n_slices > 1
        )
        for value in values
    }
    cut = Reformatted(volume=volume, original=volume, plane="acquired", arrangement=None)
    return Plan(requests=requests, cut=cut, names={value: names[value - 1] for value in requests})


def _on_slice(said: Mapping[str, Any], upload: Upload, info: Info) -> Plan:
    """Clicks on a slice of the file's last axis; those on other slices belong to other requests."""
    cut = upload.planes
    here, not_here = _points(said, "foreground"), _points(said, "background")
    k = said.get("slice")
    if k is None:
        last = here[-1:] or not_here[-1:] or [(0.0, 0.0, -1.0)]
        k = round(last[0][2])
    k = checked.integer(k, "slice", low=-1)
    clicks = [(one, True) for one in here if round(one[2]) == k] + [
        (one, False) for one in not_here if round(one[2]) == k
    ]
    strokes = [upload.stroke("point", [voxel], cut=cut, positive=positive) for voxel, positive in clicks]
    box = _box(said, upload)
    if box is not None:
        corners = [(i, j, float(k)) for i, j in zip(box[0], box[1], strict=True)]
        strokes.insert(0, upload.stroke("box", corners, cut=cut))
    return Plan(requests={1: _request(cut, strokes, whole=False)}, cut=cut, names={})


def _in_volume(said: Mapping[str, Any], upload: Upload, info: Info) -> Plan:
    """Clicks on any slices, followed through the volume."""
    volume = upload.volume
    cut = Reformatted(volume=volume, original=volume, plane="acquired", arrangement=None)
    strokes = [upload.stroke("point", [voxel], cut=cut) for voxel in _points(said, "foreground")]
    strokes += [upload.stroke("point", [voxel], cut=cut, positive=False) for voxel in _points(said, "background")]
    box = _box(said, upload)
    if box is not None:
        low, high = zip(*box, strict=True)
        along = upload.arrangement.axes[0]  # a box is drawn on a slice: on the middle one of the region of interest
        middle = (low[along] + high[along]) / 2
        corners = [tuple(middle if axis == along else end[axis] for axis in range(3)) for end in (low, high)]
        strokes.insert(0, upload.stroke("box", corners, cut=cut))
    return Plan(requests={1: _request(cut, strokes, whole=volume.n_slices > 1)}, cut=cut, names={})


def _request(cut: Reformatted, strokes: Sequence[Stroke], *, whole: bool) -> SegmentRequest:
    slice_index = strokes[0].slice_index if strokes else cut.volume.middle
    return SegmentRequest(volume=cut.volume, slice_index=slice_index, strokes=tuple(strokes), whole=whole)


def _points(said: Mapping[str, Any], name: str) -> list[Voxel]:
    given = checked.listed(said.get(name) or [], name, most=MOST_POINTS)
    found = [checked.numbers(one, f"A point of {name}", count=3).tolist() for one in given]
    return [(i, j, k) for i, j, k in found]


def _box(said: Mapping[str, Any], upload: Upload) -> list[tuple[float, float]] | None:
    """The part of the region of interest that lies in the image, for each axis its ends; None where none was drawn."""
    if not said.get("roi"):
        return None
    ends = checked.numbers(said["roi"], "roi", count=6).reshape(3, 2)
    last = np.array(upload.shape, dtype=float) - 1
    low, high = ends.min(axis=1), ends.max(axis=1)
    if (low > last).any() or (high < 0).any():
        raise InputError("prompt_outside", "The region of interest lies outside the image.", "Draw it anew.")
    return list(zip(low.clip(0).tolist(), np.minimum(high, last).tolist(), strict=True))


def describe_answers(
    answers: Mapping[int, Answer], plan: Plan, labels: NDArray[np.uint8], *, seconds: float
) -> dict[str, Any]:
    """The parameters that go with a label map.

    Only names of values that occur in it are listed: the client in 3D Slicer gives the names, in order, to the values
    that it finds, so that a name too many would shift all that follow.
    """
    found = [value for value in sorted(answers) if (labels == value).any()]
    warnings = [sentence for answer in answers.values() for sentence in answer.warnings]
    origin = next(iter(answers.values())).provenance
    return {
        "label_names": {plan.names[value]: value for value in found if value in plan.names},
        "latencies": {"total": round(seconds, 3)},
        "medsight": {
            "text": [answer.text for answer in answers.values()],
            "warnings": list(dict.fromkeys(warnings)),
            "model": origin.model,
            "digest": origin.digest,
            "research_use_only": True,
        },
    }
