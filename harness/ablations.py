"""Ablations: what each variant changes, its published and measured averages, and by how much they differ
from those of the model that it varies.

    umarvel                 63.2  60.7
    └── umarvel-no-distill  61.7 (-1.5 [-1.9, -1.1])  59.9 (-0.8 [-1.2, -0.4])   without distillation
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from harness.comparison import aligned, average
from harness.errors import HarnessError
from harness.leaderboard import GAP, Format, Row, leaderboard, percent, plain
from harness.model import ModelSpec
from harness.published import Reported
from harness.result import Stored
from harness.selection import choose
from harness.statistics import score, sum_ci
from harness.task import Suite, Task

NAME = "ablations"
"""What `harness leaderboard` calls this table."""


@dataclass(frozen=True, slots=True)
class Average:
    """A mean over a suite, in [0, 1], and how much it differs from the parent's (None: not known).

    ci95: bootstrap interval of the difference, over queries that both answered under one protocol.
    """

    value: float
    delta: float | None = None
    ci95: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Variant:
    """A model in a lineage; `depth` is its distance from the root. Averages go by suite."""

    name: str
    parent: str | None
    depth: int
    change: str | None
    paper_ref: str | None
    source: str
    published: Mapping[str, Average] = field(default_factory=dict)
    measured: Mapping[str, Average] = field(default_factory=dict)


def ablations(
    models: Mapping[str, ModelSpec],
    suites: Sequence[Suite],
    tasks: Mapping[str, Task],
    stored: Sequence[Stored],
    reported: Iterable[Reported],
) -> list[Variant]:
    """Every model that has a parent or children, each after its parent, children in their order."""
    published = _published(suites, reported)
    rows = {suite.name: _rows(suite, tasks, stored) for suite in suites}
    measured = {
        name: {model: row.average for model, row in of_model.items() if row.average is not None}
        for name, of_model in rows.items()
    }
    children: dict[str | None, list[str]] = {}
    for spec in models.values():
        children.setdefault(spec.parent if spec.parent in models else None, []).append(spec.name)

    def with_intervals(name: str, parent: str | None) -> dict[str, Average]:
        return {
            suite.name: replace(found, ci95=_interval(suite, tasks, stored, rows[suite.name], name, parent))
            for suite in suites
            if (found := _against(name, parent, measured).get(suite.name)) is not None
        }

    def walk(name: str, depth: int) -> Iterator[Variant]:
        spec = models[name]
        yield Variant(
            name=name,
            parent=spec.parent,
            depth=depth,
            change=spec.change,
            paper_ref=spec.paper_ref,
            source=spec.source,
            published=_against(name, spec.parent, published),
            measured=with_intervals(name, spec.parent),
        )
        for child in children.get(name, ()):
            yield from walk(child, depth + 1)

    return [v for root in children.get(None, ()) if root in children for v in walk(root, 0)]


def averaged(suites: Mapping[str, Suite], reported: Iterable[Reported]) -> list[Suite]:
    """The suites over which papers average their ablations."""
    names = dict.fromkeys(n.task for n in reported if NAME in n.suites and n.metric is None)
    return [suites[name] for name in names if name in suites]


def _published(suites: Sequence[Suite], reported: Iterable[Reported]) -> dict[str, dict[str, float]]:
    """Suite → our name → printed mean; the most trusted where there are several."""
    found: dict[str, dict[str, float]] = {suite.name: {} for suite in suites}
    for number in sorted(reported, key=lambda n: (n.grade, n.quoted is not None)):
        if number.metric is None and number.plugin is not None and number.task in found:
            found[number.task].setdefault(number.plugin, number.value)
    return found


def _rows(suite: Suite, tasks: Mapping[str, Task], stored: Sequence[Stored]) -> dict[str, Row]:
    """Our name → its row with an average; the best one where a model has several."""
    found: dict[str, Row] = {}
    for row in leaderboard([suite], tasks, [s.result for s in stored]).rows:
        if row.average is not None and not (row.check or row.marked or row.oracle):
            found.setdefault(row.model, row)
    return found


def _interval(
    suite: Suite,
    tasks: Mapping[str, Task],
    stored: Sequence[Stored],
    rows: Mapping[str, Row],
    name: str,
    parent: str | None,
) -> tuple[float, float] | None:
    """The interval of the difference of two rows' averages; None where they are not of the same queries."""
    if parent is None or parent not in rows:
        return None
    pair = rows[name], rows[parent]
    try:
        chosen = choose(stored, [f"{row.model}@{row.identity_id}" for row in pair], set(suite.tasks))
        first, second = (average(suite, tasks, outcomes) for outcomes in aligned(chosen))
    except HarnessError:  # other protocols, or no outcomes: a difference without an interval
        return None
    if first is None or second is None:
        return None
    shown = zip((first, second), pair, strict=True)
    if any(abs(score(strata) - (row.average or 0.0)) > 1e-9 for strata, row in shown):
        return None  # the best row was made under other choices
    return sum_ci([a - b for a, b in zip(first, second, strict=True)])


def _against(
    name: str, parent: str | None, averages: Mapping[str, Mapping[str, float]]
) -> dict[str, Average]:
    found = {}
    for suite, known in averages.items():
        if name in known:
            base = known.get(parent or "")
            found[suite] = Average(known[name], None if base is None else known[name] - base)
    return found


def render(variants: Sequence[Variant], suites: Sequence[Suite], form: Format) -> str:
    """The table and the tree as Markdown, or the variants as CSV or JSON; ends in a newline."""
    if form == "json":
        return json.dumps([asdict(v) for v in variants], indent=2, ensure_ascii=False) + "\n"
    if form == "csv":
        return _csv(variants, suites)
    return _markdown(variants, suites)


def _markdown(variants: Sequence[Variant], suites: Sequence[Suite]) -> str:
    from tabulate import tabulate

    kinds = [kind for kind in ("published", "measured") if any(getattr(v, kind) for v in variants)]
    head = ["Variant", "Change", "Paper", *(f"{s.name}, {kind}" for kind in kinds for s in suites)]
    rows = [
        [
            *(plain(text or "") for text in (v.name, v.change, v.paper_ref)),
            *(shown_average(getattr(v, kind).get(s.name)) for kind in kinds for s in suites),
        ]
        for v in variants
    ]
    align = ["left", "left", "left", *["right"] * (len(head) - 3)]
    table = tabulate(rows, headers=head, tablefmt="pipe", colalign=align, disable_numparse=True)
    notes = [
        "In brackets: the difference from the model that it varies, in points; measured ones with the 95 %"
        " interval of a bootstrap over the queries of both.",
        "Published averages of ablations are second-hand (grade C): a variant whose training differs has"
        " no public checkpoint, `harness list models -v` names the recipe that makes it.",
    ]
    below = "".join(f"\n{note}  " for note in notes)
    return f"### Ablations\n\n{table}\n{below}\n\n```\n{_tree(variants, suites)}```\n"


def shown_average(average: Average | None) -> str:
    """ "61.7 (-1.5 [-1.9, -1.1])", or a gap."""
    if average is None:
        return GAP
    if average.delta is None:
        return percent(average.value)
    ends = ", ".join(f"{100 * end:+.1f}" for end in average.ci95 or ())
    return f"{percent(average.value)} ({100 * average.delta:+.1f}{f' [{ends}]' if ends else ''})"


def _tree(variants: Sequence[Variant], suites: Sequence[Suite]) -> str:
    """The lineage, each line with its differences: measured where there are, else published."""
    lines = []
    for at, variant in enumerate(variants):
        averages = [(variant.measured or variant.published).get(suite.name) for suite in suites]
        shown = " / ".join(shown_average(a) for a in averages) if any(averages) else ""
        branch = _branch(variants, at)
        lines.append("  ".join(filter(None, (branch + variant.name, shown, variant.change or ""))))
    return "".join(f"{line}\n" for line in lines)


def _branch(variants: Sequence[Variant], at: int) -> str:
    """The strokes that lead to a line of the tree."""
    depth = variants[at].depth
    strokes = ""
    for level in range(1, depth + 1):
        later = next((v.depth for v in variants[at + 1 :] if v.depth <= level), 0)
        goes_on = later == level
        if level == depth:
            strokes += "├── " if goes_on else "└── "
        else:
            strokes += "│   " if goes_on else "    "
    return strokes


def _numbers(average: Average | None) -> tuple[float | None, ...]:
    if average is None:
        return (None,) * 4
    return average.value, average.delta, *(average.ci95 or (None, None))


def _csv(variants: Sequence[Variant], suites: Sequence[Suite]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = [(kind, s.name) for kind in ("published", "measured") for s in suites]
    titles = [
        f"{name} {kind}{what}"
        for kind, name in columns
        for what in ("", " delta", " delta low", " delta high")
    ]
    writer.writerow(["model", "parent", "change", "paper_ref", *titles])
    for v in variants:
        averages = [getattr(v, kind).get(name) for kind, name in columns]
        values = [x for a in averages for x in _numbers(a)]
        cells = ["" if x is None else repr(x) for x in values]
        writer.writerow([v.name, v.parent or "", v.change or "", v.paper_ref or "", *cells])
    return out.getvalue()
