"""Batches are launched and land: in order, one ahead of the other on a GPU, with the same outcome."""

import weakref
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from test_encode import matrix, run, texts

from harness.device import ahead, at_work, out_of_memory
from harness.errors import BadEmbedding, DeviceLost, HarnessError
from harness.evaluate import evaluate
from harness.model import full_identity
from harness.store import Store
from toys import Toy, ToyEmbedder, catalog, collection, places, spec, task


@dataclass(frozen=True, slots=True)
class Gpu(Toy):
    """Computes in its own time: a batch is launched when it is embedded, and done when it is read."""

    bad: str = ""
    log: list = None

    def load(self, device):
        return GpuEmbedder(self)


class GpuEmbedder(ToyEmbedder):
    def __init__(self, toy):
        super().__init__(Toy(fits=toy.fits, fault=toy.fault))
        self.gpu = toy

    def embed(self, batch):
        rows = super().embed(batch)
        at = [i for i, text in enumerate(batch) if self.gpu.bad and self.gpu.bad in text]
        rows[at] = float("nan")
        return rows


class Event:
    """Stands for the moment at which the device has copied a batch's rows."""

    def __init__(self, log, number):
        self.log, self.number = log, number

    def synchronize(self):
        self.log.append(f"wait {self.number}")


@pytest.fixture
def gpu(monkeypatch):
    """The engine as on a GPU: batches run one ahead, and their rows have to be waited for."""
    import harness.device as device

    log, sent = [], device._returning

    def returning(rows, count, dtype):
        back = sent(rows, count, dtype)
        log.append(f"launch {sum(said.startswith('launch') for said in log)}")
        return device.Returning(back.unit, back.norms, Event(log, log[-1].split()[1]))

    monkeypatch.setattr("harness.encode.ahead", lambda device: 1)
    monkeypatch.setattr(device, "_returning", returning)
    return log


def test_only_what_computes_by_itself_is_given_a_batch_ahead():
    assert [ahead(device) for device in ("cpu", "cuda", "cuda:1")] == [0, 1, 1]


def test_the_next_batch_is_launched_before_the_rows_of_one_are_waited_for(tmp_path, gpu):
    _, stats, _, embedders = run(tmp_path, texts(40), budget=1000, name="ahead")
    count = len(embedders[0].calls)
    assert count >= 4
    pairs = [said for n in range(1, count) for said in (f"launch {n}", f"wait {n - 1}")]
    assert gpu == ["launch 0", *pairs, f"wait {count - 1}"]
    assert stats.batches == count


def test_a_cpu_waits_for_nobody_and_writes_the_same_bytes(tmp_path, gpu, monkeypatch):
    run(tmp_path, texts(80), name="ahead")
    monkeypatch.setattr("harness.encode.ahead", lambda device: 0)
    gpu.clear()
    run(tmp_path, texts(80), name="plain")
    assert gpu[:4] == ["launch 0", "wait 0", "launch 1", "wait 1"]
    shards = [
        {p.name: p.read_bytes() for p in (tmp_path / n).rglob("*.*") if p.is_file()}
        for n in ("ahead", "plain")
    ]
    assert shards[0] == shards[1]


def test_what_does_not_fit_is_halved_with_nothing_behind_it(tmp_path, gpu, monkeypatch):
    """Of 80 texts in batches of a few, those of more than three do not fit."""
    encoded, stats, store, embedders = run(tmp_path, texts(80), Gpu(fits=3), name="tight")
    assert stats.embedded == 80
    assert max(embedders[0].calls) <= 3
    plain, _, other, _ = run(tmp_path, texts(80), name="plain")
    np.testing.assert_array_equal(matrix(encoded, store, texts(80)), matrix(plain, other, texts(80)))


@pytest.mark.parametrize("bad", ["item 3 ", "item 20 ", "item 39 "])
def test_a_bad_row_is_named_wherever_it_lies_and_what_came_before_is_stored(tmp_path, gpu, monkeypatch, bad):
    monkeypatch.setattr("harness.encode.WINDOW_ITEMS", 8)
    said, kept = [], []
    for name, depth in (("ahead", 1), ("plain", 0)):
        monkeypatch.setattr("harness.encode.ahead", lambda device, depth=depth: depth)
        with pytest.raises(BadEmbedding, match=f"not finite for candidate '{bad}") as error:
            run(tmp_path, texts(40), Gpu(bad=bad), name=name)
        said.append(str(error.value))
        kept.append(len(Store(tmp_path / name, full_identity("toy", Toy(), {}))))
    assert said[0] == said[1]
    assert kept[0] == kept[1] == int(bad.split()[1]) // 8 * 8


def test_a_failed_launch_does_not_lose_the_batch_before_it(tmp_path, gpu, monkeypatch):
    monkeypatch.setattr("harness.encode.WINDOW_ITEMS", 1)

    @dataclass(frozen=True, slots=True)
    class Broken(Toy):
        def load(self, device):
            return BrokenEmbedder(self)

    class BrokenEmbedder(ToyEmbedder):
        def embed(self, batch):
            if len(self.calls) == 3:
                raise ValueError("the fourth")
            return super().embed(batch)

    with pytest.raises(ValueError, match="the fourth"):
        run(tmp_path, texts(10), Broken())
    assert len(Store(tmp_path / "cache", full_identity("toy", Toy(), {}))) == 3


def test_the_memory_of_a_batch_that_did_not_fit_is_free_before_its_halves_start(tmp_path):
    held = []

    @dataclass(frozen=True, slots=True)
    class Greedy(Toy):
        def load(self, device):
            return GreedyEmbedder(self)

    class GreedyEmbedder(ToyEmbedder):
        def embed(self, batch):
            assert not [each for each in held if each() is not None]
            activations = torch.zeros(len(batch))
            held.append(weakref.ref(activations))
            return super().embed(batch)

    _, stats, _, _ = run(tmp_path, texts(40), Greedy(fits=2))
    assert stats.embedded == 40
    assert len(held) > 20


def test_memory_is_the_one_reason_to_halve():
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"))
    assert out_of_memory(MemoryError())
    assert out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling it"))
    assert not out_of_memory(HarnessError("one pair does not fit: out of memory"))
    assert not out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))


LOST = [
    "CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronously reported",
    "CUDA error: device-side assert triggered",
    "CUDA error: no CUDA-capable device is detected",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
]


@pytest.mark.parametrize("said", LOST)
def test_a_device_that_fails_is_one_clear_line(said):
    line = r"device cuda:1 failed .*another --device; finished .* are kept"
    with pytest.raises(DeviceLost, match=line) as error, at_work("cuda:1"):
        raise RuntimeError(said)
    assert "\n" not in str(error.value)
    assert said.splitlines()[0] in str(error.value)
    with pytest.raises(DeviceLost), at_work("cuda"):
        raise (
            torch.AcceleratorError("the accelerator is gone", 1) if False else torch.AcceleratorError("gone")
        )


def test_a_device_that_fails_is_noticed_where_its_rows_are_waited_for(tmp_path, gpu, monkeypatch):
    """A GPU tells of its end only to who waits for it: here after some batches."""

    def fail(event):
        if event.number == "8":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("harness.encode.WINDOW_ITEMS", 8)
    monkeypatch.setattr(Event, "synchronize", fail)
    with pytest.raises(DeviceLost, match="illegal memory access"), at_work("cuda"):
        run(tmp_path, texts(40), budget=10_000)
    assert len(Store(tmp_path / "cache", full_identity("toy", Toy(), {}))) > 0


def test_other_errors_are_no_device_failure():
    for error in (
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("CUDA out of memory"),
    ):
        with pytest.raises(RuntimeError, match=str(error)), at_work("cuda"):
            raise error


def test_a_lost_device_ends_the_evaluation_and_keeps_what_is_finished(tmp_path):
    """The other tasks would fail too: a device that failed takes no more work from the process."""

    @dataclass(frozen=True, slots=True)
    class Mortal(Toy):
        def load(self, device):
            return MortalEmbedder(self)

    class MortalEmbedder(ToyEmbedder):
        def embed(self, batch):
            if any("question 7" in text for text in batch):
                raise RuntimeError("CUDA error: unspecified launch failure")
            return super().embed(batch)

    tasks = [task(lambda n=n: collection(n), f"toys/{n}") for n in (6, 12, 5)]
    mortal = spec(Mortal())
    with pytest.raises(DeviceLost, match="device cpu failed"):
        evaluate(catalog([mortal], tasks), mortal, {}, tasks, places(tmp_path))
    alive = spec(Toy())
    outcomes = evaluate(catalog([alive], tasks), alive, {}, tasks, places(tmp_path))
    assert [outcome.fresh for outcome in outcomes] == [False, True, True]
