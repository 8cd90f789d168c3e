"""Encoding on Ray: one worker per device executes the batches that this process planned and stores."""

from __future__ import annotations

import importlib
import os
import platform
import re
import socket
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing import get_context, parent_process
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.compiled import compiled
from harness.content import Image, Item, Video
from harness.device import Budget, Embedded, Runner, at_work, brief
from harness.encode import Planned, Work
from harness.errors import DataMissing, DeviceLost, HarnessError
from harness.model import Embedder, Frontend, full_identity
from harness.workers import ItemSource, Prepared, worker_died

ATTEMPTS = 3
"""So often a batch, or the start of a worker, may lose its worker before that is an error."""
WAIT_SECONDS = 600.0
"""So long a cluster may take to offer the first place: an autoscaler boots a machine in minutes."""
SAY_SECONDS = 15.0
"""After so long a wait the first word about it."""
GPU_WORKERS = 3
"""Processes that prepare for one GPU, unless --workers says otherwise."""
CONNECT_SECONDS = 5.0
"""A cluster that does not answer a connection in this time is not there."""


@dataclass(frozen=True, slots=True)
class Done:
    """A batch executed by a worker: positions are those in the batch; `tokens` is a budget that fits."""

    embedded: Embedded
    tokens: int


class Worker:
    """One device: loads the weights once, then executes batches; while one is embedded, others are
    prepared in as many processes as it has."""

    def __init__(self) -> None:
        self._embedding = threading.Lock()
        self._device = "cpu"
        self._pool: ProcessPoolExecutor | None = None
        self._frontend: Frontend | None = None
        self._embedder: Embedder | None = None

    def load(
        self, frontend: Frontend, device: str, threads: int, workers: int, *, compiles: bool = False
    ) -> tuple[dict[str, str], str, str]:
        """The identity that the model has on this machine, and the names of device and machine."""
        import torch

        if device == "cpu":
            torch.set_num_threads(threads)
        self._device, self._frontend = device, frontend
        embedder = frontend.load(device)
        self._embedder = compiled(embedder) if compiles else embedder
        if workers:
            self._pool = ProcessPoolExecutor(workers, get_context("spawn"), _hold, (frontend,))
        there = device != "cpu" and torch.cuda.is_available()
        name = torch.cuda.get_device_name() if there else platform.machine()
        return full_identity("", frontend, {}), name, socket.gethostname()

    def execute(
        self, items: Sequence[Item], costs: npt.NDArray[np.int64], tokens: int, check: bool, dtype: str
    ) -> Done:
        """Prepare and embed one batch. Raises DataMissing where this machine lacks its media."""
        assert self._frontend is not None, "load() comes first"
        assert self._embedder is not None
        if self._pool is None:
            prepared = _prepare(items, self._frontend)
        else:
            try:
                prepared = self._pool.submit(_prepare, items).result()
            except BrokenProcessPool as error:
                raise worker_died(error) from None
        _require_media([items[i] for i in prepared.broken])
        budget = Budget(tokens)
        runner = Runner(self._embedder, ItemSource(items, self._frontend), budget, costs, check, dtype)
        with at_work(self._device):
            with self._embedding:
                flight = runner.launch(prepared)
                embedded = runner.land(flight) if flight.error else None
            # another batch is launched while this one is under way
            return Done(embedded or runner.land(flight), budget.tokens)


_held: Frontend
"""What a preparing process keeps, so that it is sent once and not with every batch."""


def _hold(frontend: Frontend) -> None:
    global _held
    _held = frontend
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker that is killed cannot end the processes that prepare for it."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _prepare(items: Sequence[Item], frontend: Frontend | None = None) -> Prepared:
    return ItemSource(items, frontend or _held)[0, list(range(len(items)))]


def _require_media(items: Sequence[Item]) -> None:
    """What the driver has read must be there on a worker too: without the share, every item of a
    machine would count as broken."""
    for item in items:
        for part in item.parts:
            if isinstance(part, (Image, Video)) and not part.path.exists():
                raise DataMissing(
                    f"{part.path} is not there on {socket.gethostname()}: mount the data at the same"
                    " place on every machine of the cluster"
                )


@dataclass(frozen=True, slots=True, eq=False)
class _Hired:
    """A worker that has loaded the weights."""

    actor: Any
    device: str


class _Ledger:
    """Which batches are still to do, which are with whom, and how often one has lost its worker."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.asked: dict[Any, tuple[_Hired, Planned]] = {}
        self.lost = Counter[int]()
        self._planned = work.planned()
        self._next: deque[Planned] = deque()
        self._cost = int(work.costs.sum())

    @property
    def more(self) -> bool:
        """Whether a batch is there to hand out."""
        if not self._next:
            self._next.extend(islice(self._planned, 1))
        return bool(self._next)

    @property
    def batches(self) -> int:
        """About how many are there to hand out."""
        return -(-self._cost // self.work.budget.tokens)

    def pop(self) -> Planned:
        batch = self._next.popleft()
        self._cost -= int(self.work.costs[batch[1]].sum())
        return batch

    def put_back(self, hired: _Hired) -> Planned:
        """Everything that a lost worker was asked is to do again; the batch that it was at."""
        refs = [ref for ref, (who, _) in self.asked.items() if who is hired]
        batches = [self.asked.pop(ref)[1] for ref in refs]
        self._next.extend(batches)
        self._cost += sum(int(self.work.costs[positions].sum()) for _, positions in batches)
        self.lost[batches[0][1][0]] += 1
        return batches[0]


class _Lost(Exception):
    """A worker is gone; says how Ray puts it."""


class Cluster:
    """The engine behind `--engine ray`: it hands out batches and takes back rows. Placing workers,
    starting machines and noticing what died is Ray's.

    device: "cpu" or "cuda". workers: processes that prepare, for each device. A `private` cluster
    is this machine alone.
    """

    def __init__(
        self, device: str, workers: int, *, private: bool = False, tell: Callable[[str], None]
    ) -> None:
        import torch

        self.device = device
        self.workers = workers
        self.threads = torch.get_num_threads() if device == "cpu" else 1
        self._private = private
        self._tell = tell
        self._frontend: Frontend | None = None
        self._shared: Any = None
        self._crew: list[_Hired] = []
        self._loading: dict[Any, Any] = {}
        self._failed_starts = 0
        self._compiles = False

    @property
    def needs(self) -> dict[str, int]:
        """What one worker takes of a machine. Threads are those of this process: their number may
        change the last bit of a vector."""
        cpus = {"CPU": self.threads + self.workers}
        return cpus if self.device == "cpu" else {**cpus, "GPU": 1}

    @property
    def devices(self) -> dict[str, int]:
        """How many devices of which name are at work."""
        return dict(Counter(hired.device for hired in self._crew))

    def execute(self, work: Work) -> Iterator[Embedded]:
        """The batches as they get done. One whose worker is lost goes to another; raises HarnessError
        where that happens ATTEMPTS times, and what a worker raised."""
        self._employ(work.frontend)
        self._compiles = work.options.compile
        ledger = _Ledger(work)
        crew_changed = True
        while True:
            self._hand_out(ledger)
            if not ledger.asked and not ledger.more:
                return
            if ledger.more and crew_changed:
                self._hire(ledger.batches)
            clock = time.perf_counter()
            ref = self._wait([*ledger.asked, *self._loading], busy=bool(ledger.asked))
            work.stats.spend("wait", clock)
            crew_changed = ref in self._loading
            if crew_changed:
                self._welcome(ref, work.frontend)
                continue
            hired, planned = ledger.asked[ref]
            try:
                done: Done = self._answer(ref)
            except _Lost as loss:
                self._replace(hired, ledger, loss)
                crew_changed = True
            else:
                del ledger.asked[ref]
                work.budget.tokens = min(work.budget.tokens, done.tokens)
                yield _placed(done.embedded, planned)

    def _answer(self, ref: Any) -> Any:
        """What a worker answered. Raises what it raised, or _Lost where it or its device is gone."""
        errors = _ray().exceptions
        try:
            return _ray().get(ref)
        except errors.RayTaskError as error:
            if isinstance(error.cause, DeviceLost):
                raise _Lost(str(error.cause)) from error
            raise _failure(error) from error
        except errors.RayError as error:
            raise _Lost(_line(error)) from error

    def _employ(self, frontend: Frontend) -> None:
        """Workers keep the weights from task to task; those of another model are let go."""
        if self._frontend is not frontend:
            self.close()
            self._frontend, self._shared = frontend, _ray().put(frontend)

    def close(self) -> None:
        """Let all workers go."""
        for actor in [*self._loading.values(), *(hired.actor for hired in self._crew)]:
            _ray().kill(actor)
        self._crew, self._loading, self._frontend = [], {}, None

    def _hire(self, batches: int) -> None:
        """Ask Ray for the workers that fit the cluster, and, once they are there, for as many again:
        an autoscaler starts machines for those, elsewhere they stand by for workers that are lost."""
        wanted = max(1, self._places() - len(self._crew), len(self._crew))
        for _ in range(min(wanted, batches) - len(self._loading)):
            cpus, gpus = self.needs["CPU"], self.needs.get("GPU", 0)
            actor = (
                _ray()
                .remote(Worker)
                .options(num_cpus=cpus, num_gpus=gpus, max_concurrency=self.workers + 1)
                .remote()
            )
            ref = actor.load.remote(
                self._shared, self.device, self.threads, self.workers, compiles=self._compiles
            )
            self._loading[ref] = actor

    def _places(self) -> int:
        """How many workers fit on the machines that there are. Raises HarnessError where none does
        and none can come."""
        nodes = [node["Resources"] for node in _ray().nodes() if node["Alive"]]
        places = sum(min(int(node.get(name, 0) // n) for name, n in self.needs.items()) for node in nodes)
        if not places and self._private:
            raise self._no_place()
        return places

    def _no_place(self) -> HarnessError:
        need = " and ".join(f"{n} {name}" for name, n in self.needs.items())
        return HarnessError(
            f"no machine of the Ray cluster has {need} for a worker: add one, lower --workers or"
            " OMP_NUM_THREADS, or choose another --device ('ray status' shows what there is)"
        )

    def _wait(self, refs: Sequence[Any], *, busy: bool) -> Any:
        """The next answer. While nobody works, says so now and then, and gives up once no machine
        that could has come."""
        since, say_at = time.monotonic(), SAY_SECONDS
        while True:
            done, _ = _ray().wait(refs, num_returns=1, timeout=None if busy else say_at)
            if done:
                return done[0]
            waited = time.monotonic() - since
            if waited >= WAIT_SECONDS and not self._places():
                raise self._no_place()
            self._tell(f"waiting for Ray to start a worker, {waited:.0f} s so far (see 'ray status')")
            say_at = min(2 * say_at, WAIT_SECONDS)

    def _welcome(self, ref: Any, frontend: Frontend) -> None:
        """Let a worker begin that has loaded the weights. Raises HarnessError where the model is
        another one there, and where ATTEMPTS workers in a row died before they had it."""
        actor = self._loading.pop(ref)
        try:
            theirs, device, host = self._answer(ref)
        except _Lost as loss:
            self._failed_starts += 1
            if self._failed_starts < ATTEMPTS:
                return
            raise HarnessError(
                f"{ATTEMPTS} Ray workers died one after another while they loaded the model"
                f" ({loss}): does it fit in the memory of their machines?"
            ) from loss
        ours = full_identity("", frontend, {})
        if theirs != ours:
            names = sorted(n for n in {*ours, *theirs} if ours.get(n) != theirs.get(n))
            differing = ", ".join(f"{n} {theirs.get(n)} (here {ours.get(n)})" for n in names)
            raise HarnessError(f"{host} has {differing}: install the same versions on every machine")
        self._failed_starts = 0
        self._crew.append(_Hired(actor, device))

    def _hand_out(self, ledger: _Ledger) -> None:
        """Give every worker, in turn, one batch more than it can execute at a time."""
        work, held = ledger.work, Counter(hired for hired, _ in ledger.asked.values())
        for _ in range(self.workers + 2):
            for hired in self._crew:
                if held[hired] < self.workers + 2 and ledger.more:
                    window, positions = ledger.pop()
                    items = [work.items[i] for i in positions]
                    costs = work.costs[positions]
                    ref = hired.actor.execute.remote(
                        items, costs, work.budget.tokens, work.check, work.options.store_dtype
                    )
                    ledger.asked[ref] = hired, (window, positions)
                    held[hired] += 1

    def _replace(self, hired: _Hired, ledger: _Ledger, loss: _Lost) -> None:
        """Do without a lost worker; raises HarnessError for a batch that has ended several."""
        self._crew.remove(hired)
        _ray().kill(hired.actor)
        _, positions = ledger.put_back(hired)
        if ledger.lost[positions[0]] >= ATTEMPTS:
            raise HarnessError(
                f"{ATTEMPTS} Ray workers died one after another over the {len(positions)} items that"
                f" begin with {brief(ledger.work.items[positions[0]])} ({loss}): lower --batch-tokens"
                " or --workers, or look at those items; finished shards are kept"
            )


def join(device: str, workers: int | None, tell: Callable[[str], None]) -> Cluster:
    """Join the cluster that $RAY_ADDRESS names, else start Ray on this machine alone. Raises
    HarnessError without Ray, and where no cluster answers.

    device "auto" takes GPUs where the cluster has some now.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise HarnessError(
            f"Ray hands out the devices: --device {device} cannot be chosen, only auto, cpu, cuda"
        )
    ray = _ray()
    address = os.environ.get("RAY_ADDRESS", "local")
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        _require_answer(address)
        try:
            ray.init(address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _unreachable(address, _refusal(error)) from error
    if device == "auto":
        device = "cuda" if ray.cluster_resources().get("GPU") else "cpu"
    if workers is None:
        workers = 0 if device == "cpu" else GPU_WORKERS
    return Cluster(device, workers, private=address == "local", tell=tell)


def _require_answer(address: str) -> None:
    """Ray itself would try for minutes, and then end the process."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        except (OSError, ValueError) as error:
            raise _unreachable(address, _line(error)) from error


def _refusal(error: Exception) -> str:
    """Why Ray could not connect. Where it wants a token, only the end of a long chain says so."""
    if "InvalidAuthToken" in "".join(traceback.format_exception(error)):
        return "it wants its token: set RAY_AUTH_MODE=token, and copy ~/.ray/auth_token from its head"
    return _line(error)


def _unreachable(address: str, reason: str) -> HarnessError:
    return HarnessError(
        f"no Ray cluster answers at RAY_ADDRESS={address} ({reason}): start one with 'ray start --head',"
        " or unset RAY_ADDRESS to use this machine alone"
    )


def _placed(embedded: Embedded, planned: Planned) -> Embedded:
    """A worker knows places in its batch; these are those among all items."""
    window, positions = planned
    return replace(
        embedded,
        window=window,
        positions=[positions[i] for i in embedded.positions],
        broken={positions[i]: why for i, why in embedded.broken.items()},
    )


def _failure(error: Any) -> Exception:
    """What a worker raised, as it would have been raised here."""
    if isinstance(error.cause, HarnessError):
        return error.cause
    lacking = re.search(r"No module named '([^']+)'", str(error))
    if lacking:
        return HarnessError(
            f"a Ray worker has no module {lacking[1]!r}: install the harness, the model's package and what"
            " they need on every machine of the cluster"
        )
    return RuntimeError(f"a Ray worker failed: {error}")


def _line(error: Exception) -> str:
    """The first line of a message that may have many."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise HarnessError("--engine ray needs Ray: pip install 'umr-harness[ray]'") from error
