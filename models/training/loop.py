"""The training loop: batches in, one step each, saved so that a killed run goes on as if nothing was.

results/training/mbeir-3c5f…/  log.csv                    step,loss,temperature,learning_rate,gradient_norm,seconds
                               checkpoints/step-000300/   what is trained, the optimiser; the last two

Accelerate drives the device: DDP, DeepSpeed or FSDP as its launcher is configured. What is random in a step
is a function of the seed, the step and the rank.
"""  # noqa: E501

from __future__ import annotations

import copy
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from harness.device import out_of_memory
from harness.errors import HarnessError, StorageError
from harness.files import storage_error, write_text
from harness.progress import progress
from harness.ranks import PATIENCE, plain_cpu
from harness.recipe import Settings, StageRun
from harness.workers import Source, in_workers

from .record import Record

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

KEPT = 2
"""Checkpoints that are kept: one may be written while the machine goes down."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How often, how fast and in what order; `batch` are the examples of all ranks in one step."""

    batch: int
    epochs: int
    learning_rate: float
    warmup: float
    weight_decay: float
    clip: float
    seed: int
    save_every: int
    most_steps: int | None

    @classmethod
    def of(cls, settings: Settings) -> Schedule:
        """From a stage's settings of these names."""
        return cls(**{name: settings[name] for name in cls.__slots__})  # type: ignore[arg-type]

    def steps(self, examples: int) -> int:
        """Whole batches of all epochs. Raises HarnessError where there is none."""
        found = examples * self.epochs // self.batch
        if not found:
            raise HarnessError(
                f"a batch of {self.batch:,} is more than the {examples:,} examples of {self.epochs} epochs:"
                " set a smaller batch, or use more data"
            )
        return found if self.most_steps is None else min(found, self.most_steps)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step 0, 1, …: up in a line, then down as a cosine to 0."""
        warm = math.ceil(self.warmup * steps)
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


class Engine(Protocol):
    """What a step does its backward passes with."""

    def backward(self, scalar: Tensor) -> None:
        """Add the gradient of a scalar to that of the parameters."""
        ...

    def no_sync(self) -> AbstractContextManager[None]:
        """Around a backward pass that more of the same step follow."""
        ...


Step = Callable[["Module", Any, Engine], Mapping[str, float]]
"""Adds the gradient of a prepared batch's loss to that of the model; what there is to log, `loss` first."""


def fit(
    run: StageRun,
    model: Module,
    source: Source[Any],
    examples: int,
    schedule: Schedule,
    step: Step,
    *,
    sparse: bool = False,
    replicated: Sequence[Module] = (),
) -> Module:
    """Train the parameters of `model` that want a gradient; returns the model without its wrapping.

    `source[numbers]` prepares the batch of these visits (0, 1, … in the order of training). `sparse`: a
    rank's last chunk may leave some parameters out, as one without a picture does the vision tower's.
    `replicated`: what is used outside the forward pass too, a temperature, and is never sharded.
    Raises HarnessError where the loss is not finite, with the batch saved, and where memory runs out.
    """
    import torch

    steps = schedule.steps(examples)
    replica = copy.deepcopy(model) if _shards(run) and run.ranks.rank == 0 else None
    share = _share(schedule.batch, run)
    accelerator = _accelerator(run, share, sparse, replicated)
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(wanted, schedule.learning_rate, weight_decay=schedule.weight_decay)
    model, optimizer = accelerator.prepare(model.train(), optimizer)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]  # sharded ones
    saves = _Saves(run, accelerator, {name for name, p in model.named_parameters() if p.requires_grad})
    start = saves.resume(schedule, steps)
    record = Record.open(run.folder / "log.csv", start, writes=run.ranks.rank == 0)
    engine = _Engine(accelerator, model)
    with progress(f"{run.folder.name}", steps, quiet=run.engine.quiet) as advance:
        advance(start)
        numbers = _numbers(range(start, steps), schedule.batch, share, run.ranks.rank)
        for at, batch in enumerate(in_workers(source, numbers, _workers(run), run.engine.device), start):
            clock = time.perf_counter()
            rate = schedule.rate(at, steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            torch.manual_seed(_seed(schedule.seed, at, run.ranks.rank))
            said = _stepped(partial(step, model, batch, engine), run)
            _require_finite(said["loss"], at, batch, run, saves.last)
            _average(replicated, accelerator)
            norm = accelerator.clip_grad_norm_(trained, schedule.clip)
            optimizer.step()
            optimizer.zero_grad()
            more = {
                "learning_rate": rate,
                "gradient_norm": math.nan if norm is None else float(norm),
                "seconds": time.perf_counter() - clock,
            }
            record.add(at, {**said, **more})
            advance(1)
            if (at + 1) % schedule.save_every == 0 or at + 1 == steps:
                saves.save(at + 1)
    record.plot(run.folder / "log.svg")
    return _whole(accelerator, model, replica)


def _shards(run: StageRun) -> bool:
    """Whether ranks may hold parts of the weights each."""
    names = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
    return run.ranks.count > 1 and any(os.environ.get(name) == "true" for name in names)


def _whole(accelerator: Any, model: Any, replica: Module | None) -> Module:
    """The trained model without its wrapping; where ranks hold parts of it each, the first rank's replica
    with what all have learned."""
    unwrapped: Module = accelerator.unwrap_model(model)
    if accelerator.distributed_type not in ("FSDP", "DEEPSPEED"):
        return unwrapped
    state = accelerator.get_state_dict(model)  # all ranks together
    if replica is None:
        return unwrapped
    replica.load_state_dict(state)
    return replica


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _share(batch: int, run: StageRun) -> int:
    """The examples of one rank in a step."""
    if batch % run.ranks.count:
        raise HarnessError(
            f"a batch of {batch:,} cannot be shared by {run.ranks.count} ranks: start another number of"
            f" processes, or set a batch that is a multiple of {run.ranks.count}"
        )
    return batch // run.ranks.count


def _numbers(steps: Sequence[int], batch: int, share: int, rank: int) -> Iterator[list[int]]:
    """The visits that a rank makes in each step."""
    for step in steps:
        first = step * batch + rank * share
        yield list(range(first, first + share))


def _workers(run: StageRun) -> int:
    if run.engine.workers is not None:
        return run.engine.workers
    return 0 if run.engine.device == "cpu" else 4


def _accelerator(run: StageRun, share: int, sparse: bool, replicated: Sequence[Module]) -> Any:
    """The one of this process, which reads what its launcher configured."""
    try:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
    except ImportError as error:
        raise HarnessError("training needs accelerate: pip install 'umr-harness[train]'") from error
    accelerator = Accelerator(
        mixed_precision="no" if run.settings.get("dtype") == "float32" else "bf16",
        cpu=plain_cpu(run.engine.device),
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=sparse),
            InitProcessGroupKwargs(timeout=PATIENCE),
        ],
    )
    if accelerator.num_processes != run.ranks.count:
        raise HarnessError(
            f"the launcher announced {run.ranks.count} processes (WORLD_SIZE), and"
            f" {accelerator.num_processes} came together: start them all with the same command"
        )
    if accelerator.distributed_type == "FSDP":
        accelerator.state.fsdp_plugin.ignored_modules = list(replicated)
    plugin = accelerator.state.deepspeed_plugin if accelerator.distributed_type == "DEEPSPEED" else None
    if plugin is not None:
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = share
    return accelerator


def _average(replicated: Sequence[Module], accelerator: Any) -> None:
    """FSDP leaves out of its averages over ranks what it does not shard."""
    if accelerator.distributed_type != "FSDP":
        return
    from torch import distributed

    for parameter in (p for module in replicated for p in module.parameters()):
        if parameter.grad is not None:
            distributed.all_reduce(parameter.grad)
            parameter.grad /= distributed.get_world_size()


@dataclass(frozen=True, slots=True)
class _Engine:
    accelerator: Any
    model: Any

    def backward(self, scalar: Tensor) -> None:
        self.accelerator.backward(scalar)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        if self.accelerator.distributed_type != "DEEPSPEED":
            with self.accelerator.no_sync(self.model):
                yield
            return
        self.accelerator.sync_gradients = False  # else DeepSpeed takes its step with every backward pass
        yield
        self.accelerator.sync_gradients = True


def _stepped(step: Callable[[], Mapping[str, float]], run: StageRun) -> Mapping[str, float]:
    """Raises HarnessError where the memory runs out."""
    try:
        return step()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise HarnessError(
            f"{run.chunk} sequences at a time do not fit into the memory of {run.engine.device}: give a"
            f" smaller --chunk, such as {max(1, run.chunk // 2)}; the same command goes on from the last"
            " checkpoint"
        ) from error


def _require_finite(loss: float, step: int, batch: Any, run: StageRun, last: int) -> None:
    """Raise HarnessError, the batch's visits saved, unless the loss is a number."""
    if math.isfinite(loss):
        return
    path = run.folder / f"not-finite-step-{step}-rank-{run.ranks.rank}.json"
    write_text(path, json.dumps({"step": step, "loss": str(loss), "visits": batch["visits"]}, indent=2))
    raise HarnessError(
        f"the loss of step {step} is {loss}: what the batch holds is in {path}; lower the learning rate or"
        f" mend the data, then run the same command: it goes on after step {last}"
    )


class _Saves:
    """Checkpoints of a run, each written aside and then renamed; what is left of a broken one goes."""

    def __init__(self, run: StageRun, accelerator: Any, trained: set[str]) -> None:
        self.folder = run.folder / "checkpoints"
        self.run = run
        self.accelerator = accelerator
        self.deepspeed = accelerator.distributed_type == "DEEPSPEED"
        self.last = 0

        def only_trained(models: Any, weights: list[dict[str, Any]], folder: str) -> None:
            for state in weights:
                for name in [name for name in state if name not in trained]:
                    del state[name]

        accelerator.register_save_state_pre_hook(only_trained)

    def resume(self, schedule: Schedule, steps: int) -> int:
        """Take up the last checkpoint; how many steps are done. Raises HarnessError where the launch is
        another one."""
        first = self.run.ranks.rank == 0
        self.accelerator.wait_for_everyone()
        if first:
            for broken in self.folder.glob("*.part"):
                shutil.rmtree(broken)
        self.accelerator.wait_for_everyone()
        found = sorted(self.folder.glob("step-*"))
        if not found:
            return 0
        saved = json.loads((found[-1] / "state.json").read_text(encoding="utf-8"))
        if saved["ranks"] != self.run.ranks.count:
            raise HarnessError(
                f"{found[-1]} was saved by {saved['ranks']} ranks, here are {self.run.ranks.count}: start as"
                f" many, or delete {self.folder} to train this stage anew"
            )
        loosely = {"load_module_strict": False} if self.deepspeed else {"strict": False}
        self.accelerator.load_state(str(found[-1]), **loosely)
        self.last = int(saved["step"])
        return self.last

    def save(self, step: int) -> None:
        """Raises StorageError where there is no room; the checkpoints before stay whole."""
        place = self.folder / f"step-{step:06}"
        part = place.with_name(f"{place.name}.part")
        try:
            part.mkdir(parents=True, exist_ok=True)
            less = {"exclude_frozen_parameters": True} if self.deepspeed else {}
            self.accelerator.save_state(str(part), **less)
            self.accelerator.wait_for_everyone()
            if self.run.ranks.rank == 0:
                state = {"step": step, "ranks": self.run.ranks.count}
                (part / "state.json").write_text(json.dumps(state), encoding="utf-8")
                part.rename(place)
                for old in sorted(self.folder.glob("step-??????"))[:-KEPT]:
                    shutil.rmtree(old)
        except Exception as error:
            shutil.rmtree(part, ignore_errors=True)
            if not _is_no_room(error):
                raise
            raise _no_room(place, error) from error
        self.accelerator.wait_for_everyone()
        self.last = step


def _is_no_room(error: Exception) -> bool:
    """What torch and safetensors raise over a full disk is no OSError."""
    return isinstance(error, OSError) or re.search(r"writ(e|ing)|no space", str(error), re.I) is not None


def _no_room(place: Path, error: Exception) -> HarnessError:
    if isinstance(error, OSError):
        return storage_error(place, error)
    reason = str(error).partition("\n")[0]
    return StorageError(f"cannot write {place} ({reason}): free some room; what was saved before is whole")
