"""What a model reads of a real scan is the same, bit for bit, after the scan has crossed the wire."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medsight_core.imaging.planes import reformat
from medsight_core.imaging.volume import Volume, open_volume
from medsight_core.inference.checkpoint import open_checkpoint
from medsight_core.inference.inputs import slice_pixels, slice_transform, turned_warning
from medsight_core.inference.loading import read_config, read_processor
from medsight_core.model import MedSightProcessor
from medsight_core.wire.codecs import usable_codecs
from medsight_core.wire.volumes import chunks_of, digest_of, receive
from tests.inference.tiny import save_tiny


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> MedSightProcessor:
    opened = open_checkpoint(save_tiny(tmp_path_factory.mktemp("models") / "tiny"))
    return read_processor(opened, read_config(opened))


def assert_same_inputs(processor: MedSightProcessor, one: Volume, other: Volume) -> None:
    for k in {0, one.middle, one.n_slices - 1}:
        assert torch.equal(slice_pixels(processor, one, k), slice_pixels(processor, other, k))
        frames = one.slice_frame(k), other.slice_frame(k)
        assert slice_transform(processor, frames[0]) == slice_transform(processor, frames[1])
        assert turned_warning(one, k) == turned_warning(other, k)


@pytest.mark.parametrize(
    "name",
    ["ct_abdomen_totalseg", "mr_brain_PGBM-003_T1post", "mr_multiframe", "dx_chest", "us/gdcm-US-ALOKA-16.dcm"],
)
def test_a_model_reads_the_same(name: str, shared_data: Path, processor: MedSightProcessor) -> None:
    volume = open_volume(shared_data / "dicom" / name)
    got = receive(chunks_of(volume, codec=usable_codecs()[0]), digest=digest_of(volume), limit_bytes=2**28)
    assert_same_inputs(processor, volume, got)
    if volume.frame is not None and volume.has_place and volume.n_slices > 1:
        for plane in ("acquired", "axial", "coronal", "sagittal"):
            assert_same_inputs(processor, reformat(volume, plane).volume, reformat(got, plane).volume)
