"""Slices are encoded once, remembered within a budget, and never depend on each other."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
import torch

from medsight_core.errors import InputError
from medsight_core.imaging.volume import Volume
from medsight_core.inference.engine import Engine
from medsight_core.inference.features import SliceFeatures
from medsight_core.inference.memory import size_of
from medsight_core.model.vision import VisionFeatures
from tests.inference.tiny import stack


def scan(slices: int = 6, seed: int = 0) -> Volume:
    return stack(np.random.default_rng(seed).normal(size=(slices, 30, 40)).astype(np.float32))


def features(engine: Engine, budget: int = 1 << 30) -> SliceFeatures:
    return SliceFeatures(model=engine.model, processor=engine.processor, device=engine.device, budget=budget)


def same(one: VisionFeatures, other: VisionFeatures) -> bool:
    pairs = zip((one.grid, *one.details, one.summary), (other.grid, *other.details, other.summary), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_slice_is_encoded_once(engine: Engine) -> None:
    volume, memory = scan(), features(engine)
    first = memory.get(volume, [2, 0, 2])
    assert memory.encoded == 2 and first[0] is first[2] and len(first[0].grid) == 1
    (again,) = memory.get(volume, [2])
    assert again is first[0] and memory.encoded == 2
    memory.get(scan(), [2])
    assert memory.encoded == 3, "an equal volume is another one"


def test_it_sees_what_the_model_sees(engine: Engine) -> None:
    volume = scan()
    (seen,) = features(engine).get(volume, [3])
    with torch.inference_mode():
        from medsight_core.inference.inputs import slice_pixels

        assert same(seen, engine.model.model.vision(slice_pixels(engine.processor, volume, 3)[None]))


def test_what_goes_along_changes_nothing(engine: Engine) -> None:
    volume = scan()
    together = features(engine).get(volume, range(6))
    for k in range(6):
        assert same(features(engine).get(volume, [k])[0], together[k])


def test_the_budget_holds_and_the_last_slice_stays(engine: Engine) -> None:
    volume = scan()
    one = size_of(features(engine).get(volume, [0])[0])
    memory = features(engine, budget=2 * one)
    for k in range(4):
        memory.get(volume, [k])
        assert memory.bytes <= 2 * one
    memory.get(volume, [2])
    assert memory.encoded == 4, "the last two are kept"
    memory.get(volume, [3, 0])
    memory.get(volume, [3])
    assert memory.encoded == 5, "what was used last goes last"
    nothing = features(engine, budget=0)
    nothing.get(volume, [0, 1])
    nothing.get(volume, [1])
    assert nothing.encoded == 2 and nothing.bytes == one


def test_a_pass_over_everything_leaves_no_trace(engine: Engine) -> None:
    volume, memory = scan(), features(engine)
    memory.get(volume, [4])
    memory.get(volume, range(6), keep=False)
    assert memory.encoded == 6 and memory.bytes == size_of(memory.get(volume, [4])[0])


def test_forgetting(engine: Engine) -> None:
    volume, other, memory = scan(), scan(), features(engine)
    memory.get(volume, [0, 1])
    memory.get(other, [0])
    kept = memory.bytes
    memory.forget(volume)
    assert memory.bytes == kept // 3
    memory.get(volume, [0])
    assert memory.encoded == 4
    del volume
    gc.collect()
    assert memory.bytes == kept // 3, "a volume that is gone takes its features along"


def test_a_slice_that_is_not_there(engine: Engine) -> None:
    with pytest.raises(InputError, match="0 to 5"):
        features(engine).get(scan(), [6])


def test_several_threads(engine: Engine) -> None:
    volume, memory = scan(), features(engine, budget=1)
    alone = features(engine).get(volume, range(6))
    wrong: list[int] = []

    def work(k: int) -> None:
        for _ in range(5):
            if not same(memory.get(volume, [k])[0], alone[k]):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and memory.bytes == size_of(alone[0])
