"""Phrases about a volume, from words to masks, with a real model of random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medsight_core.errors import InputError
from medsight_core.events import Progress
from medsight_core.geometry import Frame
from medsight_core.imaging.volume import Source, Volume
from medsight_core.inference.engine import Engine
from medsight_core.inference.referring import evidence_of, is_reference, refer
from medsight_core.inference.volumes import VolumeEngine
from medsight_core.referring import parse_reference
from medsight_core.resolving import resolve, split
from tests.inference.tiny import save_tiny

NAMES = ("liver", "kidney", "polyp", "spleen")


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> VolumeEngine:
    folder = save_tiny(tmp_path_factory.mktemp("named"), class_names=list(NAMES))
    engine = Engine.from_pretrained(folder, device="cpu")
    with torch.no_grad():  # a model that sees polyps everywhere, so that there is something to refer to
        engine.model.model.perceiver.segmentation_cls_head.class_embed.bias[NAMES.index("polyp")] += 4
    return VolumeEngine(engine)


@pytest.fixture(scope="module")
def volume() -> Volume:
    values = np.random.default_rng(4).integers(-200, 300, (5, 40, 48)).astype(np.int16)
    frame = Frame(
        shape=(5, 40, 48),
        origin=np.array([-60.0, -50.0, 0.0]),
        spacing=np.array([5.0, 2.5, 2.5]),
        direction=np.eye(3)[::-1],
    )
    return Volume(
        array=values,
        frame=frame,
        slice_frames=tuple(frame.slice(k) for k in range(5)),
        modality="CT",
        source=Source(kind="nifti", paths=(Path("scan.nii"),)),
    )


@pytest.mark.parametrize(
    "phrase", ["all organs you know", "the largest polyp", "the two largest kidneys", "everything"]
)
def test_an_answer_shows_what_the_reference_means_in_what_was_found(
    volumes: VolumeEngine, volume: Volume, phrase: str
) -> None:
    told: list[Progress] = []
    answer = refer(volumes, phrase, volume, on_progress=told.append)
    reference = parse_reference(phrase, NAMES)
    survey = volumes.survey(volume, reference.names)
    found = [region for region in survey.regions.values() if region is not None]
    meant = resolve(reference, found).pieces
    assert [region.label for region in answer.volume_regions] == [piece.of.label for piece in meant]
    for region, piece in zip(answer.volume_regions, meant, strict=True):
        np.testing.assert_array_equal(region.mask, piece.region().mask)
        assert region.span.of(answer.text) == region.label
        assert len(split(region)) == 1 or not reference.each
    assert bool(answer.volume_regions) == bool({"polyp"}.intersection(reference.names))
    assert told and told[-1].done == told[-1].total
    assert answer.provenance.model and answer.provenance.settings["answered_from"] == "evidence"
    assert set(answer.provenance.settings["slices"]) <= set(range(5))


@pytest.mark.parametrize(
    ("said", "picks"),
    [
        ("the largest polyp", True),
        ("Segment the largest polyp in the right lobe of the liver.", True),
        ("left kidney", True),
        ("all organs you know", True),
        ("everything", True),
        ("liver", False),
        ("Segment the liver in this image.", False),
        ("What is the diagnosis?", False),
        ("the largest moon", False),
    ],
)
def test_what_picks_something_out_is_told_from_what_only_names_it(said: str, picks: bool) -> None:
    assert is_reference(said, NAMES) == picks


def test_unknown_words_are_refused_before_a_slice_is_looked_at(volumes: VolumeEngine, volume: Volume) -> None:
    told: list[Progress] = []
    with pytest.raises(InputError, match='does not know "moon"; it knows liver, kidney, polyp, spleen'):
        refer(volumes, "the largest moon", volume, on_progress=told.append)
    assert not told


def test_another_plane_counts_all_acquired_slices_as_read(volumes: VolumeEngine, volume: Volume) -> None:
    survey = volumes.survey(volume, ["liver"], plane="coronal", slices=range(3, 6))
    evidence = evidence_of(volume, survey)
    assert evidence.slices == tuple(range(5))
    assert not evidence.findings[0].presence
    acquired = evidence_of(volume, volumes.survey(volume, ["liver"], slices=range(1, 3)))
    assert acquired.slices == (1, 2)
    assert set(acquired.findings[0].presence) == {1, 2}
