"""The loop: a stopped run goes on as if nothing was, on any number of ranks, and every fault is one line."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import train_toys
from harness.errors import HarnessError, StorageError
from harness.models.training import loop, stage
from harness.models.training.loop import Schedule
from harness.models.training.record import read
from train_toys import STAGE, trained

TARGET = Path(train_toys.__file__)
EXACT = ("loss", "temperature", "learning_rate", "gradient_norm")


def curve(folder, *names):
    return [tuple(row[name] for name in names or EXACT) for row in read(folder / "log.csv")]


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model" / "model.safetensors")


def same_weights(one, other):
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    return all(ours[name].equal(theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Six steps without an interruption."""
    return trained(tmp_path_factory.mktemp("whole"))


def test_the_loss_falls_and_what_is_frozen_stays_as_it_was(tmp_path):
    from safetensors.torch import load_file

    folder = trained(tmp_path, most_steps=None, epochs=5)
    losses = [loss for (loss,) in curve(folder, "loss")]
    assert len(losses) == 30
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    base = load_file(next((tmp_path / "out").glob("base-toy-*")) / "model.safetensors")
    after = weights(folder)
    changed = {name for name in base if not base[name].equal(after[name])}
    assert changed
    assert all(".layers." in name and "visual" not in name and "norm" not in name for name in changed)
    assert json.loads((folder / "model" / "temperature.json").read_text())["temperature"] != 0.05


class Stop(Exception):
    pass


def test_a_run_that_raised_goes_on_with_the_curve_and_the_weights_of_one_that_did_not(
    whole, tmp_path, monkeypatch
):
    real = stage.cached_step
    steps = []

    def breaks(*arguments, **more):
        steps.append(1)
        if len(steps) == 4:
            raise Stop
        return real(*arguments, **more)

    monkeypatch.setattr(stage, "cached_step", breaks)
    with pytest.raises(Stop):
        trained(tmp_path)
    assert len(curve(next((tmp_path / "out").glob("pairs-*")))) == 3  # one more than was saved
    folder = trained(tmp_path)
    assert len(steps) == 4 + 4
    assert curve(folder) == curve(whole)
    assert same_weights(folder, whole)


def test_after_kill_9_the_curve_and_the_weights_are_those_of_an_unbroken_run(whole, tmp_path):
    command = [sys.executable, str(TARGET), str(tmp_path)]
    process = subprocess.Popen(command, cwd=TARGET.parent)
    saved = lambda: list((tmp_path / "out").glob("pairs-*/checkpoints/step-000002"))  # noqa: E731
    deadline = time.monotonic() + 120
    while not saved() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    (broken,) = (tmp_path / "out").glob("pairs-*")
    (broken / "checkpoints" / "step-000003.part").mkdir()  # as a kill amid saving leaves it
    folder = trained(tmp_path)
    assert curve(folder) == curve(whole)
    assert same_weights(folder, whole)
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step-000004", "step-000006"]


def test_chunks_change_nothing_but_the_memory(whole, tmp_path):
    folder = trained(tmp_path, chunk=5, lora_dropout=0.0)
    plain = trained(tmp_path / "plain", lora_dropout=0.0)
    np.testing.assert_allclose(curve(folder), curve(plain), rtol=1e-3, atol=1e-5)
    ours, theirs = weights(folder), weights(plain)
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-3


def test_workers_prepare_the_same(whole, tmp_path):
    folder = trained(tmp_path, workers=1)
    assert curve(folder) == curve(whole)
    assert same_weights(folder, whole)


DEEPSPEED = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1",
    "ACCELERATE_GRADIENT_CLIPPING": "1.0",
}
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Qwen2VLDecoderLayer",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}
"""What `accelerate launch` sets for its configurations of these names."""


def launched(folder, count, *settings, **environment):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [*command, str(TARGET), str(folder), *settings],
        cwd=TARGET.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param({}, id="ddp"),
        pytest.param(DEEPSPEED, id="deepspeed", marks=pytest.mark.slow),
        pytest.param(FSDP, id="fsdp", marks=pytest.mark.slow),
    ],
)
def test_two_ranks_train_as_one_process_does(engine, tmp_path):
    done = launched(tmp_path / "two", 2, "lora_dropout=0.0", "chunk=3", **engine)
    assert done.returncode == 0, done.stderr[-2000:]
    (two,) = (tmp_path / "two" / "out").glob("pairs-*")
    one = trained(tmp_path / "one", lora_dropout=0.0)
    np.testing.assert_allclose(curve(two), curve(one), rtol=1e-3, atol=1e-5)
    assert json.loads((two / "manifest.json").read_text())["ranks"] == 2
    ours, theirs = weights(two), weights(one)
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("engine", [DEEPSPEED, FSDP], ids=["deepspeed", "fsdp"])
def test_a_sharded_run_goes_on_where_it_was(engine, tmp_path):
    whole = launched(tmp_path / "whole", 2, "lora_dropout=0.0", **engine)
    part = launched(tmp_path / "part", 2, "lora_dropout=0.0", "stop=4", **engine)
    assert (whole.returncode, part.returncode != 0) == (0, True)
    again = launched(tmp_path / "part", 2, "lora_dropout=0.0", **engine)
    assert again.returncode == 0, again.stderr[-2000:]
    folders = [next((tmp_path / name / "out").glob("pairs-*")) for name in ("whole", "part")]
    assert curve(folders[0]) == curve(folders[1])
    assert same_weights(*folders)


def test_the_rate_goes_up_in_a_line_and_down_as_a_cosine():
    schedule = Schedule(8, 1, 0.1, 0.2, 0.0, 1.0, 0, 1, None)
    # 10 steps, 2 of them warm: 0.05, 0.1, then 0.05·(1 + cos(π·t/8)) for t = 0 … 7
    expected = [0.05, 0.1, *(0.05 * (1 + np.cos(np.pi * t / 8)) for t in range(8))]
    assert [schedule.rate(s, 10) for s in range(10)] == pytest.approx(expected)


def test_a_loss_that_is_no_number_stops_the_run_with_the_batch_saved(tmp_path, monkeypatch):
    real, steps = loop.fit, []

    def poisoned(run, model, source, examples, schedule, step, **more):
        def worse(model, batch, engine):
            said = step(model, batch, engine)
            steps.append(1)
            return {**said, "loss": float("nan")} if len(steps) == 4 else said

        return real(run, model, source, examples, schedule, worse, **more)

    monkeypatch.setattr(stage, "fit", poisoned)
    with pytest.raises(HarnessError, match=r"loss of step 3 is nan: what .*after step 2"):
        trained(tmp_path)
    (path,) = (tmp_path / "out").glob("pairs-*/not-finite-step-3-rank-0.json")
    assert len(json.loads(path.read_text())["visits"]) == 8


def test_a_full_disk_leaves_the_checkpoint_before_whole(whole, tmp_path, monkeypatch):
    from accelerate import Accelerator

    real, calls = Accelerator.save_state, []

    def full(self, output_dir, *more, **named):
        calls.append(1)
        if len(calls) == 2:
            (Path(output_dir) / "half").write_text("x")
            raise OSError(28, "No space left on device")
        return real(self, output_dir, *more, **named)

    monkeypatch.setattr(Accelerator, "save_state", full)
    with pytest.raises(StorageError, match=r"step-000004 \(no space left on device\)"):
        trained(tmp_path)
    (folder,) = (tmp_path / "out").glob("pairs-*/checkpoints")
    assert [p.name for p in folder.iterdir()] == ["step-000002"]
    monkeypatch.undo()
    assert curve(trained(tmp_path)) == curve(whole)


@pytest.mark.parametrize(
    ("settings", "environment", "message"),
    [
        ({"batch": 100, "epochs": 1}, {}, "a batch of 100 is more than the 48 examples of 1 epochs"),
        ({"batch": 9}, {"RANK": "0", "WORLD_SIZE": "2"}, "a batch of 9 cannot be shared by 2 ranks"),
        ({}, {"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 and WORLD_SIZE=2 are no rank of a launch"),
    ],
)
def test_what_cannot_run_is_one_line(settings, environment, message, tmp_path, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("harness.ranks.Ranks.wait", lambda self, device: None)
    with pytest.raises(HarnessError, match=message) as raised:
        trained(tmp_path, **settings)
    assert "\n" not in str(raised.value)


def test_another_number_of_ranks_does_not_take_up_a_checkpoint(tmp_path, monkeypatch):
    folder = trained(tmp_path)
    (folder / "manifest.json").unlink()
    state = folder / "checkpoints" / "step-000006" / "state.json"
    state.write_text(json.dumps({"step": 6, "ranks": 8}))
    with pytest.raises(HarnessError, match="saved by 8 ranks, here are 1: start as many, or delete"):
        trained(tmp_path)


def test_what_does_not_fit_the_memory_names_a_smaller_chunk(tmp_path, monkeypatch):
    def fails(*arguments, **more):
        raise MemoryError

    monkeypatch.setattr(stage, "cached_step", fails)
    with pytest.raises(HarnessError, match=r"32 sequences at a time .* --chunk, such as 16"):
        trained(tmp_path)


def test_the_log_is_a_csv_with_a_row_a_step(whole):
    with (whole / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "1", "2", "3", "4", "5"]
    assert list(rows[0]) == ["step", "loss", "temperature", "learning_rate", "gradient_norm", "seconds"]
    assert STAGE.settings["learning_rate"] == pytest.approx(float(rows[0]["learning_rate"]))
