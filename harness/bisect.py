"""Bisect: what explains that two results of one task differ, from their ids down to single queries."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from harness.errors import HarnessError, ResultConflict
from harness.leaderboard import percent, plain
from harness.metrics import Metric
from harness.outcomes import Outcomes
from harness.result import Result, Stored
from harness.selection import differing, matching, shown

Side = Literal["model", "task", "data", "items", "machine"]
UNTOLD = ("command", "started", "seconds", "written", "counts")
"""What the provenance of two equal evaluations may differ in."""
_LISTED = 10


@dataclass(frozen=True, slots=True)
class Gap:
    """Something that is not the same on both sides: an option of the model, a choice of the protocol, a
    data file's digest, a count of items, or the machine and its libraries."""

    side: Side
    key: str
    first: Any
    second: Any


@dataclass(frozen=True, slots=True)
class Flip:
    """A query whose headline value changed."""

    query: str
    first: float
    second: float


@dataclass(frozen=True, slots=True)
class Bisection:
    """The verdict in words, and what it rests on.

    queries: how many both results scored; only: how many only the first and only the second did.
    flips: the queries whose headline differs, the largest difference first.
    """

    task: str
    verdict: str
    metric: str | None
    scores: tuple[float | None, float | None]
    gaps: tuple[Gap, ...]
    queries: int
    only: tuple[int, int]
    flips: tuple[Flip, ...]


def cell(stored: Sequence[Stored], name: str, task: str | None) -> Stored:
    """The one result that a name stands for; raises HarnessError where it stands for several."""
    found = [s for s in matching(stored, name) if task is None or s.result.task == task]
    if not found:
        raise HarnessError(f"{name} has no result of {task}: see 'harness leaderboard'")
    if len(found) > 1:
        listed = "; ".join(str(s.path) for s in found[:4]) + ("; …" if len(found) > 4 else "")
        advice = "name a result file" if task else "add --task, or name a result file"
        raise HarnessError(f"{name} stands for {len(found)} results, {advice}: {listed}")
    return found[0]


def bisect(first: Stored, second: Stored) -> Bisection:
    """What differs between two results of one task. Raises HarnessError where their tasks differ."""
    a, b = first.result, second.result
    if a.task != b.task:
        raise HarnessError(
            f"{first.path} is of {a.task}, {second.path} of {b.task}: only results of one task can be"
            " told apart"
        )
    found = Bisection(a.task, "", None, (None, None), tuple(_gaps(a, b)), 0, (0, 0), ())
    if a.headline is not None and a.headline in b.metrics:
        found = _with_queries(found, a.headline, first, second)
    return replace(found, verdict=_verdict(found, a, b))


def _gaps(a: Result, b: Result) -> list[Gap]:
    protocols = differing(a.protocol, b.protocol)
    machine = [{key: value for key, value in r.provenance.items() if key not in UNTOLD} for r in (a, b)]
    sides: list[tuple[Side, Mapping[str, tuple[Any, Any]]]] = [
        ("model", differing(a.identity, b.identity)),
        ("task", {k: v for k, v in protocols.items() if not k.startswith("files.")}),
        ("data", {k: v for k, v in protocols.items() if k.startswith("files.")}),
        ("items", differing(a.counts, b.counts)),
        ("machine", differing(*machine)),
    ]
    return [Gap(side, key, *values) for side, gaps in sides for key, values in gaps.items()]


def _with_queries(found: Bisection, headline: str, first: Stored, second: Stored) -> Bisection:
    scores = first.result.metrics[headline].value, second.result.metrics[headline].value
    found = replace(found, metric=str(Metric.parse(headline)), scores=scores)
    try:
        mine, theirs = (_by_query(s.outcomes(), headline) for s in (first, second))
    except ResultConflict:  # the ids still tell what they can
        return found
    both = [query for query in mine if query in theirs]
    flips = [Flip(q, mine[q], theirs[q]) for q in both if abs(mine[q] - theirs[q]) > 1e-12]
    flips.sort(key=lambda flip: (-abs(flip.first - flip.second), flip.query))
    only = (len(mine) - len(both), len(theirs) - len(both))
    return replace(found, queries=len(both), only=only, flips=tuple(flips))


def _by_query(outcomes: Outcomes, headline: str) -> dict[str, float]:
    return dict(zip(outcomes.queries, map(float, outcomes.values[headline]), strict=True))


CAUSES: Mapping[Side, str] = {
    "model": "the model's side",
    "task": "the choices of the protocol",
    "data": "the data files",
}


def _verdict(found: Bisection, a: Result, b: Result) -> str:
    """One paragraph: how far apart, what explains it, and which queries carry it."""
    return " ".join([*_distance(found, a, b), _explanation(found), *_carried(found)])


def _distance(found: Bisection, a: Result, b: Result) -> list[str]:
    first, second = found.scores
    if first is None or second is None:
        return [f"The results have no common score ({a.status}, {b.status})."]
    if first == second:
        return [f"Both score {percent(first)} in {found.metric}."]
    return [
        f"The first scores {percent(first)}, the second {percent(second)} in {found.metric}"
        f" ({100 * (first - second):+.2f} points)."
    ]


def _explanation(found: Bisection) -> str:
    sides = {side: [g.key for g in found.gaps if g.side == side] for side in (*CAUSES, "items", "machine")}
    causes = [f"{CAUSES[side]} ({_keys(keys)})" for side, keys in sides.items() if side in CAUSES and keys]
    if len(causes) > 1:
        return f"Several things differ, {' and '.join(causes)}: change one at a time to tell which it is."
    if causes:
        rest = [f"not {CAUSES[side]}" for side in CAUSES if not sides[side]]
        return f"What differs is {causes[0]}, {' and '.join(rest)}."
    same = "Identity, protocol and data are the same"
    if not found.flips and found.scores[0] == found.scores[1]:
        return f"{same}, and so is every outcome: there is nothing to explain."
    if sides["items"]:
        return f"{same}, but not the items that were read ({_keys(sides['items'])}): look for damaged media."
    if sides["machine"]:
        return f"{same}: what is left is the machine ({_keys(sides['machine'])})."
    return (
        f"{same}, and nothing that is recorded differs: the model or its media files are not deterministic"
        " (see 'harness audit')."
    )


def _keys(keys: Sequence[str]) -> str:
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")


def _carried(found: Bisection) -> list[str]:
    if not found.queries:
        return ["No query can be compared: per-query outcomes are missing or of different queries."]
    better = sum(flip.second > flip.first for flip in found.flips)
    said = [
        f"{len(found.flips):,} of {found.queries:,} common queries changed:"
        f" {better:,} better in the second, {len(found.flips) - better:,} worse."
    ]
    if any(found.only):
        said.append(f"{found.only[0]:,} queries are only in the first, {found.only[1]:,} only in the second.")
    return said


def render(found: Bisection, first: str, second: str) -> str:
    """The verdict, then what differs, then the queries that changed most; Markdown."""
    blocks = [f"### {found.task}: {plain(first)} and {plain(second)}", found.verdict]
    if found.gaps:
        rows = [[g.side, plain(g.key), plain(shown(g.first)), plain(shown(g.second))] for g in found.gaps]
        blocks.append(_table(["Side", "What", "First", "Second"], rows))
    if found.flips:
        flips = [[plain(f.query), f"{f.first:.3f}", f"{f.second:.3f}"] for f in found.flips[:_LISTED]]
        blocks.append(_table(["Query", f"First {found.metric}", f"Second {found.metric}"], flips))
        if len(found.flips) > _LISTED:
            blocks.append(f"{len(found.flips) - _LISTED:,} more queries changed: see --json.")
    return "\n\n".join(blocks) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    from tabulate import tabulate

    return tabulate(rows, headers=head, tablefmt="pipe", disable_numparse=True)


def as_json(found: Bisection) -> str:
    """Full precision, shares in [0, 1], all queries that changed."""
    return json.dumps(asdict(found), indent=2, ensure_ascii=False) + "\n"
