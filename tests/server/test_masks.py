"""Masks of recent answers: found by whoever knows their names, as packed bits and as files, for a while."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from medsight_core.errors import InputError, MedSightError
from medsight_core.events import RegionFound
from medsight_core.imaging.mask_files import write_nifti_labels, write_seg_nrrd
from medsight_core.imaging.volume import Source, Volume
from medsight_core.regions import Region, Span, VolumeRegion
from medsight_core.server import problems
from medsight_core.server.masks import Masks, masks_router
from medsight_core.wire.events import EventReader, EventWriter
from medsight_core.wire.masks import PackedMask, pack_mask, unpack_mask
from tests.wire.scans import SECRET, scan

PERSON = Source(
    kind="nifti",
    paths=(Path(SECRET),),
    description=SECRET,
    series_uid="1.2.826.42",
    frame_of_reference_uid="1.2.826.43",
)
SCAN = scan((4, 30, 20), source=PERSON)


def on_slice(k: int = 2, volume: Volume = SCAN) -> Region:
    mask = np.zeros((30, 20), bool)
    mask[5:12, 3:9] = True
    return Region(
        code="[C2_16]", label="left lung", span=Span(0, 9), score=0.9, slice_index=k, mask=mask,
        frame=volume.slice_frame(k),
    )  # fmt: skip


def in_volume() -> VolumeRegion:
    mask = np.zeros((4, 30, 20), bool)
    mask[1:3, 5:12, 3:9] = True
    return VolumeRegion(
        code="[C2_16]", label="left lung", span=Span(0, 9), score=0.9, mask=mask, frame=SCAN.require_frame()
    )


@pytest.fixture
def masks() -> Masks:
    return Masks()


@pytest.fixture
def client(masks: Masks) -> Iterator[TestClient]:
    app = FastAPI()
    problems.install(app)
    app.include_router(masks_router(masks))
    with TestClient(app) as client:
        yield client


def keep(masks: Masks, region: Region | VolumeRegion, volume: Volume = SCAN) -> str:
    return masks.keeper(volume)(region, pack_mask(region.mask))


@pytest.mark.parametrize("region", [on_slice(), in_volume()], ids=["slice", "volume"])
def test_a_mask_is_given_out_as_its_box_with_its_frame(client: TestClient, masks: Masks, region) -> None:
    reply = client.get(keep(masks, region))
    assert reply.status_code == 200
    told = reply.json()
    assert (unpack_mask(PackedMask.from_json(told["mask"]), shape=region.mask.shape) == region.mask).all()
    assert told["mask"]["box"][-2:] == [[5, 12], [3, 9]]
    assert (
        told["frame"]["shape"] == list(region.frame.shape) and told["frame"]["origin"] == region.frame.origin.tolist()
    )
    assert (told["label"], told["code"], told["slice"]) == (
        "left lung", "[C2_16]", getattr(region, "slice_index", None),
    )  # fmt: skip


@pytest.mark.parametrize("region", [on_slice(), in_volume()], ids=["slice", "volume"])
@pytest.mark.parametrize(("ending", "write"), [(".nii.gz", write_nifti_labels), (".seg.nrrd", write_seg_nrrd)])
def test_a_mask_is_given_out_as_a_file(
    client: TestClient, masks: Masks, region, ending: str, write, tmp_path: Path
) -> None:
    """The very file that is written where the scan lies."""
    reply = client.get(keep(masks, region) + ending)
    assert reply.status_code == 200 and f'mask{ending}"' in reply.headers["content-disposition"]
    got, here = tmp_path / f"got{ending}", tmp_path / f"here{ending}"
    got.write_bytes(reply.content)
    write([region], SCAN, here)
    if ending == ".nii.gz":
        one, other = nibabel.load(got), nibabel.load(here)
        assert (one.affine == other.affine).all() and one.header["descrip"] == other.header["descrip"]
        drawn = np.asarray(one.dataobj)
        assert (drawn == np.asarray(other.dataobj)).all() and drawn.sum() == region.mask.sum()
    else:
        assert got.read_bytes() == here.read_bytes()
    assert SECRET.encode() not in reply.content and b"1.2.826" not in reply.content


def test_a_mask_on_a_slice_of_an_irregular_series_is_a_file_of_that_slice(client: TestClient, masks: Masks) -> None:
    tilted = scan((4, 30, 20), frame=None, problem=InputError("gantry_tilt", "It is slanted."))
    reply = client.get(keep(masks, on_slice(1, tilted), tilted) + ".nii.gz")
    assert reply.status_code == 200


@pytest.mark.parametrize("ending", ["", ".nii.gz", ".seg.nrrd"])
@pytest.mark.parametrize("name", ["x", "A" * 22, "..", "%2e%2e%2fetc"])
def test_a_mask_that_is_not_there_is_named(client: TestClient, name: str, ending: str) -> None:
    reply = client.get(f"/v1/masks/{name}{ending}")
    assert reply.status_code == 404
    if reply.json().get("code") != "not_found":
        assert reply.json()["code"] == "mask_unknown" and reply.json()["remedy"]


def test_an_empty_mask_has_no_file(client: TestClient, masks: Masks) -> None:
    empty = replace(on_slice(), mask=np.zeros((30, 20), bool))
    url = keep(masks, empty)
    assert client.get(url).status_code == 200
    reply = client.get(url + ".nii.gz")
    assert (reply.status_code, reply.json()["code"]) == (422, "empty_mask")


def test_names_are_long_and_never_the_same() -> None:
    masks = Masks()
    names = {keep(masks, on_slice()) for _ in range(200)}
    assert len(names) == 200 and min(len(name.rpartition("/")[2]) for name in names) >= 22


def test_the_oldest_masks_go_when_there_is_no_room() -> None:
    masks = Masks(limit_bytes=20_000)
    names = [keep(masks, on_slice()).rpartition("/")[2] for _ in range(10)]
    kept = []
    for name in names:
        try:
            masks.get(name)
            kept.append(name)
        except MedSightError as error:
            assert error.code == "mask_unknown"
    assert kept == names[-len(kept) :] and 1 < len(kept) < 10


def test_the_voxels_of_the_scan_are_not_held_on_to(masks: Masks) -> None:
    kept = masks.get(keep(masks, in_volume()).rpartition("/")[2])
    assert kept.volume.array.base is not SCAN.array and kept.volume.array.strides == (0, 0, 0)
    assert kept.region.mask.strides == (0, 0, 0)
    assert (kept.whole().mask == in_volume().mask).all()


def test_a_client_fetches_what_did_not_come_in_place(client: TestClient, masks: Masks) -> None:
    large = scan((1, 1200, 1200))
    noise = np.random.default_rng(0).random((1200, 1200)) < 0.5
    region = replace(on_slice(0), mask=noise, frame=large.slice_frame(0))
    event = json.loads(json.dumps(EventWriter(large, put_mask=masks.keeper(large)).to_json(RegionFound(region))))
    assert "data" not in event["region"]["mask"]

    def fetch(url: str) -> PackedMask:
        return PackedMask.from_json(client.get(url).json()["mask"])

    got = EventReader(large, get_mask=fetch).from_json(event)
    assert isinstance(got, RegionFound) and (got.region.mask == noise).all()
