"""An audit: does a model's vector hang on its item alone, on all of it, and how much on rounding and wording?

Check(name="batch invariance", verdict="pass", figure=1.2e-07, threshold=1e-05, detail="…")
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harness.collection import Collection, checked
from harness.content import Candidate, Item, Query, item
from harness.device import out_of_memory, release_memory, texts_cut
from harness.digest import Digests
from harness.errors import DataInvalid, HarnessError, NoSuchInstruction, UnknownName
from harness.evaluate import open_frontend, open_model, require_data
from harness.model import ModelSpec
from harness.store import Facts, key
from harness.task import Protocol, Task
from harness.testing import INVARIANCE, Probe, changes, distances, expected, sample_items, unit
from harness.tripwires import FIRST, Check, graded, vectors, without

Float64 = npt.NDArray[np.float64]

BATCH = 16
"""Items in a batch: enough to mix lengths and modalities."""
OF_A_KIND = 3
"""So many items of each role and modality are looked at one by one."""
QUERIES = 64
"""So many queries of each task, and the pool cut to match."""
ROUNDING = {"float32": INVARIANCE, "float16": 1e-4, "bfloat16": 1e-3}
"""Cosine distance that another order of summing may make, by the dtype that is computed in."""
PRECISION = {"float16": (1e-3, 1e-2), "bfloat16": (1e-2, 5e-2)}
"""Cosine distances from float32, of 99 in 100 items: 10 bits of mantissa against 7."""
TOP_CHANGES = (0.05, 0.2)
"""Shares of queries whose first candidate is another one."""
SPREAD = 0.05
"""Difference of the headline between wordings of one instruction, in [0, 1]."""
REWORDED = 0.1
"""Mean cosine distance between a query's vectors under those wordings."""
NEVER = float("inf")
REPHRASED = ("{}", "Please do the following. {}", "Your task: {}", "{} Give the best match.")
"""Four wordings of an instruction, for tasks that have one."""
WORDINGS = ("1", "2", "3", "4")


@dataclass(frozen=True, slots=True)
class Small:
    """A small collection of a task that a model takes as a whole."""

    task: Task
    collection: Collection
    wordings: tuple[Collection, ...]
    """The same with the instruction in other words; none where queries carry no instruction."""


@dataclass(frozen=True, slots=True)
class Audit:
    """What was looked at, and the checks."""

    model: str
    identity_id: str
    dtype: str
    device: str
    tasks: tuple[str, ...]
    items: int
    checks: tuple[Check, ...]

    @property
    def failed(self) -> bool:
        return any(check.verdict == "FAIL" for check in self.checks)


def audit(
    spec: ModelSpec,
    given: Mapping[str, str],
    tasks: Sequence[Task],
    *,
    data: Path,
    scratch: Path,
    device: str = "cpu",
) -> Audit:
    """Audit a model on items of these tasks and on generated ones, which are written to `scratch`.

    Raises HarnessError for a check model, missing data, or tasks of which the model takes no item.
    """
    if spec.check is not None:
        raise HarnessError(f"model {spec.name!r} is a check of tasks: there is nothing to audit")
    require_data(tasks, data, Protocol())
    opened = open_model(spec, given)
    frontend = opened.frontend
    reads = getattr(frontend, "reads_instructions", True)
    loaded = [(task, _loaded(task, data)) for task in tasks]
    roles = [_of_role(loaded, role, frontend.modalities, reads) for role in ("query", "candidate")]
    if not any(roles):
        raise HarnessError(f"{spec.name} takes none of the items of {', '.join(t.name for t in tasks)}")
    sample = _sample([*chain(*roles), *sample_items(scratch, frontend)])
    small = next(_smalls(loaded, data, frontend.modalities, reads), None)
    probe = Probe(spec.name, frontend, frontend.load(device))
    checks: list[Check] = []
    try:
        for made in (
            _invariance(probe, sample),
            _use(probe, sample, scratch, reads),
            *(
                _statistics(probe, who, items)
                for who, items in zip(("queries", "candidates"), roles, strict=True)
            ),
            _wording(probe, small, roles[0], reads),
            _repetition(probe, spec, given, sample, device),
            _precision(spec, given, small, sample, device),
        ):
            checks += made
    except AssertionError as fault:  # a probe's: rows that are not finite, or too few
        checks.append(Check("rows", "FAIL", None, None, str(fault)))
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise HarnessError(
            f"{spec.name} does not fit in the memory of {device} with {BATCH} items at a time:"
            " use a smaller dtype or a bigger device"
        ) from error
    return Audit(
        spec.name,
        opened.id,
        opened.identity.get("dtype", "unknown"),
        device,
        tuple(t.name for t in tasks),
        len(sample) + sum(map(len, roles)),
        tuple(checks),
    )


def render(done: Audit) -> str:
    """Markdown: a line for each check, and a summary."""
    from tabulate import tabulate

    rows = [
        [c.name, c.verdict, *("–" if v is None else f"{v:.3g}" for v in (c.figure, c.threshold)), c.detail]
        for c in done.checks
    ]
    head = ["Check", "Verdict", "Figure", "Limit", "What was seen, and why it is limited"]
    align = ("left", "left", "right", "right", "left")
    table = tabulate(rows, headers=head, tablefmt="pipe", colalign=align, disable_numparse=True)
    count = {v: sum(c.verdict == v for c in done.checks) for v in ("FAIL", "warn", "pass", "not applicable")}
    summary = ", ".join(f"{n} {verdict}" for verdict, n in count.items() if n)
    title = f"{done.model} ({done.identity_id}, {done.dtype}) on {done.device}, {done.items} items"
    return f"{title}\n\n{table}\n\n{summary}.\n"


def _loaded(task: Task, data: Path, instructions: str = "hash") -> Collection:
    collection, _ = checked(task.load(data, Protocol(instructions=instructions)).limited(QUERIES))
    return collection


def _of_role(
    loaded: Sequence[tuple[Task, Collection]], role: str, takes: frozenset[str], reads: bool
) -> list[Item]:
    """At most FIRST distinct items of a role, of all tasks in turn."""
    digests = Digests()
    things: list[Sequence[Query | Candidate]] = [
        c.queries if role == "query" else c.pool.sequence for _, c in loaded
    ]
    found: dict[bytes, Item] = {}
    in_turn: Iterator[Query | Candidate | None] = chain.from_iterable(zip_longest(*things))
    for thing in in_turn:
        if thing is not None and len(found) < FIRST:
            one = item(thing, instructed=reads)
            if one.modality in takes:
                found.setdefault(key(one, digests), one)
    return list(found.values())


def _sample(items: Sequence[Item]) -> list[Item]:
    """A few items of each role and modality, the kinds mixed, so that no batch holds one kind alone."""
    kinds: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for one in items:
        kinds[one.role, one.modality].append(one)
    few = [kind[:: max(1, len(kind) // OF_A_KIND)][:OF_A_KIND] for kind in kinds.values()]
    return [one for row in zip_longest(*few) for one in row if one is not None]


def _smalls(
    loaded: Sequence[tuple[Task, Collection]], data: Path, takes: frozenset[str], reads: bool
) -> Iterator[Small]:
    """The tasks that can be scored; where instructions are read, those that have some come first."""
    fit = [
        (task, c)
        for task, c in loaded
        if c.qrels is not None and {item(t).modality for t in (*c.queries, *c.pool)} <= takes
    ]
    for task, c in fit if reads else ():
        if any(query.instruction for query in c.queries):
            yield Small(task, c, _wordings(task, c, data))
    yield from (Small(task, c, ()) for task, c in fit)


def _wordings(task: Task, collection: Collection, data: Path) -> tuple[Collection, ...]:
    """The task's own instructions where it has several, else its one in four wordings."""
    try:
        own = tuple(_loaded(task, data, number) for number in WORDINGS)
    except (NoSuchInstruction, DataInvalid):
        own = ()
    if len({tuple(q.instruction for q in each.queries) for each in own}) > 1:
        return own
    return tuple(
        dataclasses.replace(collection, queries=[_reworded(q, form) for q in collection.queries])
        for form in REPHRASED
    )


def _reworded(query: Query, form: str) -> Query:
    return dataclasses.replace(query, instruction=query.instruction and form.format(query.instruction))


def _batches(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    return (items[i : i + BATCH] for i in range(0, len(items), BATCH))


def _unit(probe: Probe, items: Sequence[Item]) -> Float64:
    """[N, D] unit rows, in batches of neighbours."""
    return np.concatenate([probe.unit(batch) for batch in _batches(items)])


def _dtype(probe: Probe) -> str:
    return probe.frontend.identity.get("dtype", "float32")


def _invariance(probe: Probe, sample: Sequence[Item]) -> Iterator[Check]:
    """Whether an item's vector is the same whatever it is embedded with."""
    dtype = _dtype(probe)
    bound = ROUNDING.get(dtype, INVARIANCE)
    longest = max(sample, key=probe.frontend.cost)
    alone, together = probe.alone(sample), _unit(probe, sample)
    backwards = _unit(probe, sample[::-1])[::-1]
    padded = np.concatenate([probe.unit([one, longest])[:1] for one in sample])
    for name, a, b, what in (
        ("batch invariance", alone, together, f"alone and among {BATCH - 1} others"),
        ("order invariance", together, backwards, "in a batch and in the reversed one"),
        ("padding invariance", alone, padded, "alone and beside the longest item"),
    ):
        worst = distances(a, b)
        detail = (
            f"greatest cosine distance of {len(sample)} items {what}, at one of modality"
            f" {sample[int(worst.argmax())].modality}; {dtype} rounding explains {bound:g}"
        )
        yield graded(name, float(worst.max()), (bound, bound), detail)


def _use(probe: Probe, sample: Sequence[Item], scratch: Path, reads: bool) -> Iterator[Check]:
    """Whether each part of an item moves its vector, and whether their order does."""
    still: dict[str, list[bool]] = defaultdict(list)
    for one in sample:
        before = probe.unit([one])[0]
        for what, changed in changes(one, scratch, reads):
            still[what].append(not probe.moves(before, changed))
        turned = dataclasses.replace(one, parts=one.parts[::-1])
        if len(one.parts) > 2 and turned != one:  # a pair has one place for each kind in many templates
            still["order of parts"].append(not probe.moves(before, turned))
    for what in ("picture", "text", "clip", "instruction", "order of parts"):
        name, seen = f"use: {what}", still[what]
        if what == "instruction" and not reads:
            yield without(name, "the model reads no instructions")
        elif not seen:
            yield without(name, "no item that the model takes has any")
        else:
            detail = f"another {what} leaves the vector as it is in {sum(seen)} of {len(seen)} items"
            bounds = (0.5, NEVER) if what == "order of parts" else (0.0, 0.2)
            reason = "; a bag of parts does so" if what == "order of parts" else "; it should in none"
            yield graded(name, sum(seen) / len(seen), bounds, detail + reason)


def _statistics(probe: Probe, who: str, items: Sequence[Item]) -> Iterator[Check]:
    """The tripwires of an evaluation, on these items."""
    if not items:
        yield without(f"{who}: collapse", "the model takes no such item of these tasks")
        return
    rows, cut = [], []
    for part in _batches(items):
        batch = probe.prepared(part)
        rows.append(probe.embedded(batch, len(part)))
        cut.append(texts_cut(batch, len(part)))
    raw = np.concatenate(rows)
    facts = Facts(np.linalg.norm(raw, axis=1).astype(np.float32), np.concatenate(cut))
    yield from vectors(who, items, unit(raw), facts)


def _wording(probe: Probe, small: Small | None, queries: Sequence[Item], reads: bool) -> Iterator[Check]:
    """How much the headline of a small task hangs on the wording of the instruction; where none can
    be scored, how much the vectors of queries do."""
    name = "instruction sensitivity"
    told = [one for one in queries if one.instruction][:QUERIES]
    if not reads:
        yield without(name, "the model reads no instructions")
    elif small is not None and small.wordings:
        pool = _unit(probe, [item(c) for c in small.collection.pool])
        scores = [_headline(probe, small.task, each, pool) for each in small.wordings]
        count = len(small.collection.queries)
        bound, spread = max(SPREAD, 3 / count), max(scores) - min(scores)
        detail = (
            f"{small.task.headline} of {small.task.name} on {count} queries under {len(scores)} wordings:"
            f" mean {100 * np.mean(scores):.1f}, {100 * min(scores):.1f} to {100 * max(scores):.1f};"
            " papers draw the wording at random"
        )
        yield graded(name, spread, (bound, NEVER), detail)
    elif told:
        first, *others = (
            _unit(probe, [dataclasses.replace(one, instruction=form.format(one.instruction)) for one in told])
            for form in REPHRASED
        )
        away = float(np.mean([distances(first, rows) for rows in others]))
        detail = (
            f"mean cosine distance of {len(told)} queries under {len(REPHRASED)} wordings; no task that it"
            " takes as a whole has scores"
        )
        yield graded(name, away, (REWORDED, NEVER), detail)
    else:
        yield without(name, "no query has an instruction")


def _headline(probe: Probe, task: Task, collection: Collection, pool: Float64) -> float:
    """The headline by sorting lists; candidates that carry no instruction keep their rows."""
    queries = _unit(probe, [item(q) for q in collection.queries])
    q_row = {q.id: i for i, q in enumerate(collection.queries)}
    c_row = {c.id: i for i, c in enumerate(collection.pool)}
    cosines = queries @ pool.T
    scores = expected(collection, task, lambda q, c: float(cosines[q_row[q.id], c_row[c.id]]))
    return scores[task.headline.key]


def _repetition(
    probe: Probe, spec: ModelSpec, given: Mapping[str, str], sample: Sequence[Item], device: str
) -> Iterator[Check]:
    """Whether the same batch gives the same bytes again, and after loading the weights anew."""
    first = _unit(probe, sample)
    bound = ROUNDING.get(_dtype(probe), INVARIANCE)
    for name, rows in (
        ("determinism, same weights", _unit(probe, sample)),
        ("determinism, loaded again", _rows_of(spec, given, sample, device)),
    ):
        if isinstance(rows, str):
            yield without(name, rows)
            continue
        equal = int((rows == first).all(axis=1).sum())
        worst = float(distances(first, rows).max()) if equal < len(sample) else 0.0
        detail = f"{equal} of {len(sample)} rows have the same bytes; a GPU may sum in another order"
        check = graded(name, worst, (bound, bound), detail)
        yield dataclasses.replace(check, verdict="warn") if equal < len(sample) and not check.bad else check


def _precision(
    spec: ModelSpec, given: Mapping[str, str], small: Small | None, sample: Sequence[Item], device: str
) -> Iterator[Check]:
    """What half precision changes: distances from float32, and the first candidates of a small task."""
    asked = [item(q) for q in small.collection.queries] if small else []
    found = [item(c) for c in small.collection.pool] if small else []
    items = [*asked, *found] or sample
    exact = _rows_of(spec, {**given, "dtype": "float32"}, items, device)
    for dtype, bounds in PRECISION.items():
        name = f"precision: {dtype}"
        if isinstance(exact, str):
            yield without(name, exact)
            continue
        rows = _rows_of(spec, {**given, "dtype": dtype}, items, device)
        if isinstance(rows, str):
            yield without(name, rows)
            continue
        if not np.isfinite(rows).all():
            yield Check(name, "FAIL", None, None, f"{dtype} overflows: a row is not finite")
            continue
        median, high, most = np.quantile(distances(exact, rows), [0.5, 0.99, 1])
        detail = (
            f"cosine distance from float32 of 99 in 100 of {len(items)} items"
            f" (median {median:.1e}, greatest {most:.1e}); more than {bounds[0]:g} is beyond rounding"
        )
        yield graded(name, float(high), bounds, detail)
        if small:
            tops = [(r[: len(asked)] @ r[len(asked) :].T).argmax(axis=1) for r in (exact, rows)]
            other = int((tops[0] != tops[1]).sum())
            detail = f"first candidate changes for {other} of {len(asked)} queries of {small.task.name}"
            yield graded(f"{name}, first", other / len(asked), TOP_CHANGES, detail)


def _rows_of(spec: ModelSpec, given: Mapping[str, str], items: Sequence[Item], device: str) -> Float64 | str:
    """[N, D] unit rows of a model opened anew, NaN where one is not finite; or why there are none."""
    try:
        frontend = open_frontend(spec, given)
    except UnknownName:
        return "the model has no option dtype"
    try:
        return _unit(Probe(spec.name, frontend, frontend.load(device)), items)
    except AssertionError:
        return np.full((len(items), 1), np.nan)
    except (RuntimeError, MemoryError) as error:
        release_memory()
        what = f"with {given['dtype']}" if "dtype" in given else "a second time"
        if out_of_memory(error):
            return f"it does not fit in the memory of {device} {what}"
        return f"it cannot be computed on {device} {what}: {str(error).splitlines()[0]}"
