"""Worker processes: what they hand over, and what happens when one is killed."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from test_encode import run, texts

from harness.errors import HarnessError
from harness.model import full_identity
from harness.store import Store
from harness.workers import Prepared, in_workers
from toys import Toy


@pytest.fixture
def pinning(monkeypatch):
    """The shapes of what was pinned; there is no GPU to pin for."""
    pinned = []

    def pin(tensor):
        pinned.append(tuple(tensor.shape))
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    return pinned


def test_a_prepared_batch_goes_to_page_locked_memory_as_it_is(pinning):
    batch = {
        "ids": np.arange(6).reshape(2, 3).T,  # not contiguous
        "pixels": [np.ones((2, 2), np.float32), torch.ones(3)],
        "none": np.zeros((0, 4)),
        "names": np.array(["a"]),
        "layout": ("x", 1),
    }
    got = Prepared(0, [1, 2], batch, {}, 1.0, 0.5).pin_memory()
    assert sorted(pinning) == [(2, 2), (3,), (3, 2)]
    assert (got.window, got.positions, got.seconds) == (0, [1, 2], 1.0)
    np.testing.assert_array_equal(got.batch["ids"], batch["ids"])
    np.testing.assert_array_equal(got.batch["pixels"][0], batch["pixels"][0])
    assert torch.equal(got.batch["pixels"][1], batch["pixels"][1])
    for name in ("none", "names", "layout"):
        assert got.batch[name] is batch[name] or got.batch[name] == batch[name]


def test_without_workers_too_a_gpu_gets_page_locked_memory(pinning):
    source = [np.ones((2, 3)), np.ones(4)]
    assert [len(batch) for batch in in_workers(source, iter([1, 0]), 0, "cuda")] == [4, 2]
    assert pinning == [(4,), (2, 3)]
    list(in_workers(source, iter([1, 0]), 0, "cpu"))
    assert len(pinning) == 2


@dataclass(frozen=True, slots=True)
class Deadly(Toy):
    """Kills the process that prepares one item, unless that is `home`."""

    home: int = 0
    deadly: str = ""

    def prepare(self, items):
        if os.getpid() != self.home and any(self.deadly in item.parts[0].text for item in items):
            os.kill(os.getpid(), signal.SIGKILL)
        return super(Deadly, self).prepare(items)


def test_a_killed_worker_is_one_clear_line_and_the_command_goes_on_from_the_finished_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("harness.encode.WINDOW_ITEMS", 16)
    deadly = Deadly(home=os.getpid(), deadly="item 90 ")
    line = r"a worker process died .*lower --workers .*shards are kept"
    with pytest.raises(HarnessError, match=line) as error:
        run(tmp_path, texts(100), deadly, workers=1)
    assert "\n" not in str(error.value)
    kept = len(Store(tmp_path / "cache", full_identity("toy", Toy(), {})))
    assert kept >= 16
    _, stats, _, _ = run(tmp_path, texts(100))
    assert stats.embedded == 100 - kept
