"""The interface of MONAI Label: requests as its clients send them, and masks exactly where they belong."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from fastapi import FastAPI
from fastapi.testclient import TestClient
from nibabel.orientations import inv_ornt_aff
from scipy import ndimage

from medsight_core.server import problems
from medsight_core.server.monai import NAMED, SLICE, VOLUME, monai_router
from medsight_core.server.monai_uploads import Uploads, read_upload
from medsight_core.server.work import Work
from tests.server.bright import BRIGHT, Brightness

OBLIQUE = np.array(
    [[0.62, 0.11, -0.9, -40.0], [-0.14, 0.68, 0.5, 12.0], [0.21, -0.09, 2.9, 7.0], [0, 0, 0, 1.0]]
)  # made orthogonal below


def oblique_affine() -> np.ndarray:
    """(i, j, k) to RAS mm: turned about three axes, spacing 0.7 x 0.9 x 3.1 mm."""
    turn, _ = np.linalg.qr(OBLIQUE[:3, :3])
    affine = np.eye(4)
    affine[:3, :3] = turn * np.sign(np.diag(turn)) * (0.7, 0.9, 3.1)
    affine[:3, 3] = OBLIQUE[:3, 3]
    return affine


def scan(seed: int = 0, shape: tuple[int, int, int] = (21, 17, 9)) -> np.ndarray:
    """Two bright, lopsided structures in noise, (i, j, k); no two axes and no two ends look alike."""
    values = np.random.default_rng(seed).integers(0, 100, shape).astype(np.int16)
    values[3:8, 2:5, 1:4] = BRIGHT
    values[5:12, 4, 2] = BRIGHT
    values[14:19, 9:15, 5:9] = BRIGHT
    values[14, 9:12, 5] = 0
    return values


def nifti(values: np.ndarray, affine: np.ndarray) -> bytes:
    image = nibabel.Nifti1Image(values, affine)
    image.set_qform(affine, code="scanner")
    image.set_sform(affine, code="scanner")
    return gzip.compress(image.to_bytes())


class Served:
    """The routes over HTTP, as a client of MONAI Label uses them."""

    def __init__(self, token: str | None = None, uploads: Uploads | None = None) -> None:
        self.backend = Brightness()
        self.app = FastAPI(max_body_size=2**20)
        problems.install(self.app)
        work = Work(most=4, backlog=4, keep_alive_seconds=5)
        self.app.include_router(monai_router(self.backend, work, token=token, uploads=uploads))
        self.http = TestClient(self.app, raise_server_exceptions=False)

    def session(self, content: bytes, **query: Any) -> str:
        files = {"files": ("tmp3k4.nii.gz", content)}
        reply = self.http.put("/session/", files=files, data={"client_id": "user-xyz"}, params=query)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["session_id"])

    def infer(self, model: str, session: str, **params: Any) -> tuple[bytes, dict[str, Any], str]:
        """The request of MONAI Label's ``client.py``: the file, the parameters and the file's name that come back."""
        said = {"result_extension": ".nrrd", "result_dtype": "uint8", "client_id": "user-xyz", **params}
        reply = self.http.post(
            f"/infer/{model}",
            params={"image": "Volume_1", "session_id": session},
            files={"params": (None, json.dumps(said))},
        )
        assert reply.status_code == 200, reply.text
        form = parts(reply.headers["content-type"], reply.content)
        name, image = next((name, data) for name, data in form.values() if name)
        return image, json.loads(form["params"][1]), name


def parts(content_type: str, body: bytes) -> dict[str, tuple[str | None, bytes]]:
    message = message_from_bytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    assert message.is_multipart()
    return {
        str(part.get_param("name", header="content-disposition")): (part.get_filename(), part.get_payload(decode=True))
        for part in message.get_payload()
    }


def read_mask(content: bytes, ending: str, folder: Path) -> sitk.Image:
    path = folder / f"mask{ending}"
    path.write_bytes(content)
    return sitk.ReadImage(str(path))


def placements() -> Iterator[Any]:
    """The same scan with its axes stored in any order and direction."""
    for order in [(0, 1, 2), (1, 0, 2), (2, 1, 0), (0, 2, 1), (1, 2, 0), (2, 0, 1)]:
        for flips in [(1, 1, 1), (-1, 1, 1), (1, -1, 1), (1, 1, -1), (-1, -1, 1), (-1, -1, -1)]:
            yield pytest.param(order, flips, id=f"{''.join(map(str, order))}{''.join('+-'[f < 0] for f in flips)}")


def stored(order: tuple[int, ...], flips: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Values and affine of a file that stores the oblique scan so."""
    values = scan()
    ornt = np.array([[order.index(axis), flips[axis]] for axis in range(3)])
    turned = nibabel.orientations.apply_orientation(values, ornt)
    return turned, oblique_affine() @ inv_ornt_aff(ornt, values.shape)


def structure(values: np.ndarray, which: int) -> np.ndarray:
    numbered, count = ndimage.label(values >= BRIGHT)
    sizes = sorted(range(1, count + 1), key=lambda n: int((numbered == n).sum()))
    return np.asarray(numbered == sizes[which])


@pytest.fixture(scope="module")
def served() -> Served:
    return Served()


@pytest.mark.parametrize(("order", "flips"), list(placements()))
def test_a_click_gives_the_structure_on_the_grid_of_the_file(
    served: Served, tmp_path: Path, order: tuple[int, ...], flips: tuple[int, ...]
) -> None:
    values, affine = stored(order, flips)
    content = nifti(values, affine)
    session = served.session(content)
    (tmp_path / "sent.nii.gz").write_bytes(content)
    sent = sitk.ReadImage(str(tmp_path / "sent.nii.gz"))
    for which in (0, 1):
        wanted = structure(values, which)
        click = np.argwhere(wanted)[len(np.argwhere(wanted)) // 3].tolist()
        for model, expected in ((VOLUME, wanted), (SLICE, wanted & (np.arange(values.shape[2]) == click[2]))):
            image, params, _ = served.infer(model, session, foreground=[click], background=[], slice=click[2])
            assert params["label_names"] == {}
            mask = read_mask(image, ".nrrd", tmp_path)
            np.testing.assert_array_equal(sitk.GetArrayFromImage(mask).T, expected)
            assert mask.GetSize() == sent.GetSize()
            np.testing.assert_allclose(mask.GetOrigin(), sent.GetOrigin(), atol=1e-4)
            np.testing.assert_allclose(mask.GetSpacing(), sent.GetSpacing(), rtol=1e-5)
            np.testing.assert_allclose(mask.GetDirection(), sent.GetDirection(), atol=1e-5)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd"])
def test_names_give_their_values_and_only_those_that_are_there(served: Served, tmp_path: Path, ending: str) -> None:
    values, affine = scan(), oblique_affine()
    session = served.session(nifti(values, affine))
    wanted = ["large one", "nothing", "small one"]
    image, params, name = served.infer(NAMED, session, label=wanted, result_extension=ending)
    assert params["label_names"] == {"small one": 1, "large one": 3}
    assert name.startswith("medsight-") and name.endswith(ending)
    mask = read_mask(image, ending, tmp_path)
    expected = structure(values, 0) * 1 + structure(values, 1) * 3
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask).T, expected)
    np.testing.assert_allclose(
        mask.TransformIndexToPhysicalPoint((3, 2, 5)), (affine @ (3, 2, 5, 1))[:3] * (-1, -1, 1), atol=1e-4
    )
    assert mask.GetPixelID() == sitk.sitkUInt8


def test_ohif_asks_by_number_and_wants_plain_voxels(served: Served) -> None:
    """As its plugin does: the image alone, NRRD that is not compressed, one class by its number."""
    session = served.session(nifti(scan(), oblique_affine()))
    said = {"label_prompt": [1], "result_extension": ".nrrd", "result_compress": False, "restore_label_idx": False}
    reply = served.http.post(
        f"/infer/{NAMED}",
        params={"image": "1.2.3", "output": "image", "session_id": session},
        files={"params": (None, json.dumps(said))},
        headers={"accept": "application/json, multipart/form-data"},
    )
    assert reply.status_code == 200
    head, _, voxels = reply.content.partition(b"\n\n")
    assert b"encoding: raw" in head
    mask = np.frombuffer(voxels, np.uint8).reshape((21, 17, 9), order="F")
    np.testing.assert_array_equal(mask, structure(scan(), 0))


def test_a_background_click_takes_away_and_stands_behind(served: Served) -> None:
    values = scan()
    session = served.session(nifti(values, oblique_affine()))
    small, large = (np.argwhere(structure(values, which))[0].tolist() for which in (0, 1))
    image, _, _ = served.infer(VOLUME, session, foreground=[small, large], background=[small], result_extension=".nii")
    np.testing.assert_array_equal(np.asarray(nibabel.Nifti1Image.from_bytes(image).dataobj), structure(values, 1))


def test_clicks_on_other_slices_are_left_out_of_a_slice(served: Served) -> None:
    """On slice 0 the client in 3D Slicer sends the clicks of all slices."""
    values = scan()
    values[1:4, 10:13, 0] = BRIGHT
    session = served.session(nifti(values, oblique_affine()))
    elsewhere = np.argwhere(structure(scan(), 1))[0].tolist()
    image, _, _ = served.infer(SLICE, session, foreground=[elsewhere, [2, 11, 0]], slice=0, result_extension=".nii.gz")
    mask = np.asarray(nibabel.Nifti1Image.from_bytes(gzip.decompress(image)).dataobj)
    assert set(map(tuple, np.argwhere(mask))) == {(i, j, 0) for i in (1, 2, 3) for j in (10, 11, 12)}


@pytest.mark.parametrize(("order", "flips"), [((0, 1, 2), (1, 1, 1)), ((2, 0, 1), (-1, 1, -1))])
def test_a_region_of_interest_is_a_box_on_the_slice(
    served: Served, order: tuple[int, ...], flips: tuple[int, ...]
) -> None:
    values, affine = stored(order, flips)
    session = served.session(nifti(values, affine))
    # The corners come in any order, and may lie outside.
    image, _, _ = served.infer(SLICE, session, roi=[5, 2, 3, 400, 0, 9], slice=4, result_extension=".nii")
    mask = np.asarray(nibabel.Nifti1Image.from_bytes(image).dataobj)
    expected = np.zeros(values.shape, bool)
    expected[2:6, 3:, 4] = True
    np.testing.assert_array_equal(mask, expected)


def test_an_image_may_come_with_the_request_or_by_name(served: Served) -> None:
    content, name = nifti(scan(), oblique_affine()), "1.2.826.0.1.3680043.8.498.1"
    click = np.argwhere(structure(scan(), 0))[0].tolist()
    said = {"params": json.dumps({"foreground": [click], "result_extension": ".nii"})}
    with_it = served.http.post(
        f"/infer/{VOLUME}",
        params={"image": "x", "output": "image"},
        data=said,
        files={"file": ("/a/b.nii.gz", content)},
    )
    unknown = served.http.post(f"/infer/{VOLUME}", params={"image": name}, data=said)
    assert (unknown.status_code, unknown.json()["code"]) == (404, "image_unknown")
    sent = served.http.put(
        "/datastore/", params={"image": name}, data={"params": "{}"}, files={"file": ("a.nii.gz", content)}
    )
    assert sent.status_code == 200 and name not in sent.text
    by_name = served.http.post(f"/infer/{VOLUME}", params={"image": name, "output": "image"}, data=said)
    assert with_it.status_code == by_name.status_code == 200
    assert with_it.content == by_name.content
    np.testing.assert_array_equal(
        np.asarray(nibabel.Nifti1Image.from_bytes(by_name.content).dataobj), structure(scan(), 0)
    )


@pytest.mark.parametrize("name", ["Volume_1", "4: Müller", "1.2", "1.2.3.4/5", "1." * 40 + "1", "1.2.3.4\n"])
def test_an_image_under_a_name_that_others_may_use_is_not_taken(served: Served, name: str) -> None:
    """Two people have a "Volume_1" each: one would get masks of the other's."""
    reply = served.http.put(
        "/datastore/", params={"image": name}, files={"file": ("a", nifti(scan(), oblique_affine()))}
    )
    assert (reply.status_code, reply.json()["code"]) == (400, "bad_name")


def test_what_there_is_to_choose_from(served: Served) -> None:
    info = served.http.get("/info/").json()
    assert info["labels"] == ["small one", "nothing", "large one"]
    assert {name: model["type"] for name, model in info["models"].items()} == {
        NAMED: "segmentation",
        SLICE: "deepgrow",
        VOLUME: "deepgrow",
    }
    assert info["models"][NAMED]["labels"] == {"small one": 1, "nothing": 2, "large one": 3}
    assert (info["models"][SLICE]["dimension"], info["models"][VOLUME]["dimension"]) == (2, 3)
    assert served.http.get("/auth/").json()["enabled"] is False


def test_the_servers_token_is_the_password() -> None:
    served = Served(token="a-token-of-some-length")
    assert served.http.get("/auth/").json()["enabled"] is True
    form = {"username": "somebody", "password": "a-token-of-some-length", "grant_type": "password"}
    reply = served.http.post("/auth/token", data=form).json()
    assert (reply["access_token"], reply["token_type"]) == ("a-token-of-some-length", "bearer")
    refused = served.http.post("/auth/token", data={**form, "password": "wröng"})
    assert refused.status_code == 401 and "wröng" not in refused.text


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_session_expires_and_can_be_removed() -> None:
    clock = Clock()
    served = Served(uploads=Uploads(clock=clock))
    content = nifti(scan(), oblique_affine())
    session, short, gone = served.session(content), served.session(content, expiry=10), served.session(content)
    assert served.http.delete(f"/session/{gone}").status_code == 200
    assert served.http.get(f"/session/{gone}").json() == {}
    clock.now = 11
    assert served.http.get(f"/session/{session}").json()["name"] == session
    assert served.http.get(f"/session/{short}").json() == {}
    clock.now = 3600
    assert served.http.get(f"/session/{session}").json()["name"] == session  # it was used at 11 s
    clock.now = 7201
    assert served.http.get(f"/session/{session}").json() == {}
    lost = served.http.post(f"/infer/{VOLUME}", params={"session_id": session}, data={"params": "{}"})
    assert lost.json()["code"] == "session_unknown"
    assert served.http.delete(f"/session/{session}").json()["code"] == "session_unknown"


def test_sessions_are_bounded_and_the_least_used_goes() -> None:
    one = scan().nbytes
    uploads = Uploads(limit_bytes=2 * one + 10)
    upload = read_upload(io.BytesIO(nifti(scan(), oblique_affine())), limit_bytes=2**20)
    first, second = uploads.add(upload), uploads.add(upload)
    uploads.get(first)
    third = uploads.add(upload)
    assert [bool(uploads.describe(name)) for name in (first, second, third)] == [True, False, True]
    few = Uploads(most=2)
    names = [few.add(upload) for _ in range(4)]
    assert [bool(few.describe(name)) for name in names] == [False, False, True, True]


def test_a_file_that_takes_more_memory_than_there_is_is_refused_by_its_header() -> None:
    served = Served(uploads=Uploads(limit_bytes=1000))
    reply = served.http.put("/session/", files={"files": ("a.nii.gz", nifti(scan(), oblique_affine()))})
    assert (reply.status_code, reply.json()["code"]) == (413, "too_large")


@pytest.mark.parametrize(
    ("model", "params", "code"),
    [
        ("deepedit", {}, "model_not_found"),
        (NAMED, {}, "bad_request"),
        (NAMED, {"label": "Müller"}, "bad_request"),
        (NAMED, {"label": []}, "nothing_asked"),
        (NAMED, {"label_prompt": [4]}, "bad_request"),
        (NAMED, {"label_prompt": [0]}, "bad_request"),
        (VOLUME, {}, "nothing_asked"),
        (SLICE, {}, "nothing_asked"),
        (SLICE, {"foreground": [[1, 1, 1]], "slice": "1"}, "bad_request"),
        (VOLUME, {"foreground": [[1, 1]]}, "bad_request"),
        (VOLUME, {"foreground": [["1", 1, 1]]}, "bad_request"),
        (VOLUME, {"foreground": [[1, 1, 9]]}, "prompt_outside"),
        (VOLUME, {"foreground": [[-1, 1, 1]]}, "prompt_outside"),
        (VOLUME, {"foreground": [[10**21, 1, 1]]}, "bad_request"),
        (VOLUME, {"foreground": [[1, 1, 1]] * 257}, "bad_request"),
        (VOLUME, {"foreground": {"a": 1}}, "bad_request"),
        (SLICE, {"roi": [40, 50, 1, 2, 1, 2], "slice": 1}, "prompt_outside"),
        (VOLUME, {"foreground": [[1, 1, 1]], "result_extension": ".seg.nrrd"}, "unsupported_output"),
        (VOLUME, {"foreground": [[1, 1, 1]], "result_extension": "../x.nrrd"}, "unsupported_output"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(served: Served, model: str, params: dict[str, Any], code: str) -> None:
    session = served.session(nifti(scan(), oblique_affine()))
    reply = served.http.post(
        f"/infer/{model}", params={"session_id": session}, files={"params": (None, json.dumps(params))}
    )
    assert 400 <= reply.status_code < 500
    assert reply.json()["code"] == code, reply.text
    assert "Müller" not in reply.text


@pytest.mark.parametrize("text", ["{", "[]", '{"a": NaN}', '{"a": Infinity}', "[" * 50_000, '"x"', "1" * 10_000])
def test_params_that_are_no_object(served: Served, text: str) -> None:
    session = served.session(nifti(scan(), oblique_affine()))
    reply = served.http.post(f"/infer/{VOLUME}", params={"session_id": session}, files={"params": (None, text)})
    assert reply.status_code == 400 and reply.json()["code"] in ("bad_json", "bad_request")
