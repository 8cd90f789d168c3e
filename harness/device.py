"""A device at work: prepared batches are launched, their rows land, and what does not fit is halved."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.content import Item, Text
from harness.dtypes import DTYPE, array_of
from harness.errors import BadEmbedding, DeviceLost, HarnessError
from harness.model import Batch, Embedder
from harness.store import Embeddings, Facts
from harness.workers import ItemSource, Prepared

if TYPE_CHECKING:
    from torch import Tensor

Norms = npt.NDArray[np.float32]


def ahead(device: str) -> int:
    """How many batches are launched before the rows of the one before them are waited for: a CPU
    computes when it is asked, a GPU by itself."""
    return 0 if device == "cpu" else 1


@dataclass(slots=True)
class Budget:
    """The padded cost of a batch; lowered where one did not fit, for the windows planned after that.

    probe: it is a guess, and the best one is still to be found.
    """

    tokens: int
    probe: bool = False


@dataclass(frozen=True, slots=True)
class Embedded:
    """What became of a planned batch: the rows of `positions`, and why the others cannot be read.

    rows: [len(positions), D], unit rows as they are stored.
    """

    window: int
    positions: list[int]
    rows: Embeddings
    facts: Facts
    broken: dict[int, str]
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class Returning:
    """Rows on their way from a device: they are whole once `ready` has happened (None: now).

    unit: [B, D] of length one; norms: [B] float32, the lengths they had.
    """

    unit: Tensor
    norms: Tensor
    ready: Any


@dataclass(frozen=True, slots=True)
class Flight:
    """A batch that was launched, or the error that it ended with.

    It holds what was prepared until it lands: the device may still be reading that.
    """

    prepared: Prepared
    returning: Returning | None
    error: Exception | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Runner:
    """An embedder that takes the prepared batches of a source, whose items cost so much each.

    Rows that cannot be right are refused, but for zeros where the model is a `check`.
    """

    embedder: Embedder
    source: ItemSource
    budget: Budget
    costs: npt.NDArray[np.int64]
    check: bool
    dtype: str = DTYPE
    """of the rows"""

    def run(self, prepared: Iterable[Prepared], *, ahead: int) -> Iterator[Embedded]:
        """What becomes of the batches, in order; so many are launched before the first has landed. Behind
        one that failed nothing is launched until it is dealt with."""
        flying: deque[Flight] = deque()
        for each in prepared:
            flying.append(self.launch(each))
            keep = 0 if flying[-1].error else ahead
            while len(flying) > keep:
                yield self.land(flying.popleft())
        while flying:
            yield self.land(flying.popleft())

    def launch(self, prepared: Prepared) -> Flight:
        """Hand a batch to the device without waiting for it; what goes wrong is raised where it lands."""
        clock = time.perf_counter()
        returning, failed = None, None
        try:
            if prepared.positions:
                rows = self.embedder.embed(prepared.batch)
                returning = _returning(rows, len(prepared.positions), self.dtype)
        except Exception as error:
            # a new error: the old one's traceback would hold the memory that ran out
            failed = MemoryError(str(error)) if out_of_memory(error) else error
        return Flight(prepared, returning, failed, time.perf_counter() - clock)

    def land(self, flight: Flight) -> Embedded:
        """Wait for the rows of a batch; halves what did not fit and lowers the budget. Raises what the
        launch ended with, and BadEmbedding that names the item at fault."""
        clock = time.perf_counter()
        prepared = flight.prepared
        rows: Embeddings = np.zeros((0, 0), self.dtype)
        facts = Facts(np.zeros(0, np.float32), np.zeros(0, np.int16))
        if prepared.positions:
            rows, norms = self._rows(flight)
            facts = Facts(norms, texts_cut(prepared.batch, len(rows)))
        seconds = {
            "decode": prepared.decode,
            "prepare": prepared.seconds - prepared.decode,
            "embed": flight.seconds + time.perf_counter() - clock,
        }
        return Embedded(prepared.window, prepared.positions, rows, facts, prepared.broken, seconds)

    def _rows(self, flight: Flight) -> tuple[Embeddings, Norms]:
        """[B, D] unit rows and the norms they had."""
        if isinstance(flight.error, MemoryError):
            return self._halved(flight.prepared, flight.error)
        if flight.error is not None:
            raise flight.error
        back = flight.returning
        assert back is not None, "a batch of items returns rows"
        if back.ready is not None:
            back.ready.synchronize()
        norms: Norms = back.norms.numpy()
        bad = ~np.isfinite(norms) | ((norms == 0) & (not self.check))
        if bad.any():
            at = int(bad.argmax())
            what = "a zero row" if norms[at] == 0 else "a row that is not finite"
            raise BadEmbedding(
                f"the model returned {what} for {brief(self.source.items[flight.prepared.positions[at]])}"
            )
        return array_of(back.unit), norms

    def _halved(self, prepared: Prepared, error: MemoryError) -> tuple[Embeddings, Norms]:
        positions, items = prepared.positions, self.source.items
        costs = self.costs[positions]
        if len(positions) == 1:
            raise HarnessError(
                f"one item of cost {costs[0]} does not fit in memory"
                f" ({brief(items[positions[0]])}): use a smaller dtype or a bigger device"
            ) from error
        self.budget.tokens = max(1, min(self.budget.tokens, int(costs.max()) * len(positions) // 2))
        release_memory()
        middle = (len(positions) + 1) // 2
        halves = []
        for part in (positions[:middle], positions[middle:]):
            batch = self.source.frontend.prepare([items[i] for i in part])
            halves.append(self._rows(self.launch(replace(prepared, positions=part, batch=batch))))
        return np.concatenate([rows for rows, _ in halves]), np.concatenate([norms for _, norms in halves])


def _returning(rows: Tensor, count: int, dtype: str) -> Returning:
    """Rows brought to unit length in float32, then rounded as they are stored, and their norms, sent to
    this process."""
    import torch

    if rows.ndim != 2 or rows.shape[0] != count:
        raise BadEmbedding(f"the model returned shape {tuple(rows.shape)} for {count} items, not [B, D]")
    rows = rows.detach().to(dtype=torch.float32)
    norms = torch.linalg.vector_norm(rows, dim=1)
    unit = (rows / norms[:, None].clamp_min(1e-12)).to(getattr(torch, dtype))
    # without waiting, and so into page-locked memory
    unit, norms = (each.to("cpu", non_blocking=True) for each in (unit, norms))
    ready = torch.cuda.current_stream(rows.device).record_event() if rows.is_cuda else None
    return Returning(unit, norms, ready)


def texts_cut(batch: Batch, count: int) -> npt.NDArray[np.int16]:
    """How many texts of each item were shortened in a prepared batch: what a mapping says under
    "cut", [count]; -1 where it says nothing."""
    said = batch.get("cut") if isinstance(batch, Mapping) else None
    return np.full(count, -1, np.int16) if said is None else np.asarray(said, np.int16)


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the device or of the machine."""
    import torch

    said = str(error) if isinstance(error, RuntimeError) else ""
    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or "not enough memory" in said
        or "out of memory" in said
        or "ALLOC_FAILED" in said  # how cuBLAS and cuDNN put it
    )


def release_memory() -> None:
    """Give memory back that torch keeps for later."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def at_work(device: str) -> Iterator[None]:
    """Raises DeviceLost where the device fails otherwise than by its memory: nothing that runs on it
    later can be right, and a new process is needed to use it again. Raises HarnessError where
    torch.compile fails."""
    try:
        yield
    except RuntimeError as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise HarnessError(f"the model cannot be compiled ({said}): leave --compile out") from error
        if out_of_memory(error) or not _lost(error):
            raise
        raise DeviceLost(
            f"device {device} failed ({said}): see what"
            " 'nvidia-smi' and the system's log say of it, and run the same command again, there or with"
            " another --device; finished results and shards are kept"
        ) from error


def _lost(error: RuntimeError) -> bool:
    import torch

    return isinstance(error, getattr(torch, "AcceleratorError", ())) or any(
        said in str(error) for said in ("CUDA error", "HIP error", "CUDNN_STATUS", "CUBLAS_STATUS")
    )


def brief(item: Item) -> str:
    """An item for a message: its role, and the beginning of each part."""

    def shown(part: Any) -> str:
        if isinstance(part, Text):
            return repr(part.text if len(part.text) <= 40 else part.text[:37] + "...")
        return str(part.path)

    return f"{item.role} {' + '.join(map(shown, item.parts))}"
