"""Which plots a set of results gives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from harness.ablations import Average, Variant
from harness.failures import Report
from harness.leaderboard import Leaderboard, Row
from harness.metrics import Metric
from harness.plots import MOST, Plot, Step, bars, curves, radar, score_histogram, speed, waterfall
from harness.result import Result


def board_plots(name: str, board: Leaderboard) -> Iterator[Plot]:
    """Averages by group of columns (radar and bars) of the first rows, ours before published ones;
    hit@k, and speed against quality, of ours."""
    rows = sorted((row for row in board.rows if not row.check), key=lambda row: bool(row.sources))[:MOST]
    scores = {row.label: means for row in rows if (means := _group_means(board, row))}
    groups = {group for means in scores.values() for group in means}
    whole = {label: means for label, means in scores.items() if len(means) == len(groups)}
    if len(groups) > 2 and whole:
        yield radar(f"{name}-radar", f"{name}: averages by group", whole)
    if len(groups) > 1:
        yield bars(f"{name}-groups", f"{name}: averages by group", scores)
    elif rows:
        yield _columns(name, board, rows)
    hits = {row.label: found for row in rows if (found := _hits(row))}
    if hits:
        yield curves(f"{name}-hits", f"{name}: hit@k, the mean over tasks", hits)
    points = {
        row.label: (rate, row.average)
        for row in board.rows
        if row.average is not None and not row.check and (rate := _rate(r for c in row.scored for r in c))
    }
    if len(points) > 1:
        yield speed(f"{name}-speed", f"{name}: speed against quality", points)


def _group_means(board: Leaderboard, row: Row) -> dict[str, float]:
    """Group → mean of its columns, where the row has all of them."""
    columns: dict[str, list[float | None]] = {}
    for heading, value in zip(board.headings, row.values, strict=True):
        columns.setdefault(heading.group, []).append(value)
    full = {group: [v for v in values if v is not None] for group, values in columns.items()}
    return {group: sum(v) / len(v) for group, v in full.items() if group and len(v) == len(columns[group])}


def _columns(name: str, board: Leaderboard, rows: Sequence[Row]) -> Plot:
    """Bars of all columns, with the intervals that are known."""
    titles = [f"{h.title} {h.metric}" for h in board.headings]
    scores: dict[str, dict[str, float]] = {}
    intervals: dict[str, dict[str, tuple[float, float]]] = {}
    for row in rows:
        known = zip(titles, row.values, strict=True)
        scores[row.label] = {title: value for title, value in known if value is not None}
        for title, heading, results in zip(titles, board.headings, row.scored, strict=False):
            if len(results) == 1 and heading.key in results[0].metrics:
                intervals.setdefault(row.label, {})[title] = results[0].metrics[heading.key].ci95
    return bars(f"{name}-columns", f"{name}: every column", scores, intervals)


def _hits(row: Row) -> dict[int, float]:
    """k → mean hit@k over the row's tasks, for every k that all those that have any share."""
    tasks = {r.task: _hits_of(r) for results in row.scored for r in results}
    found = [hits for hits in tasks.values() if len(hits) > 1]
    shared = set.intersection(*map(set, found)) if found else set()
    means = {k: sum(hits[k] for hits in found) / len(found) for k in sorted(shared)}
    return means if len(means) > 1 else {}


def _hits_of(result: Result) -> dict[int, float]:
    metrics = {Metric.parse(key): score.value for key, score in result.metrics.items()}
    return {m.k: value for m, value in metrics.items() if m.kind == "Hit" and m.rel == 1 and m.k is not None}


def _rate(results: Iterable[Result]) -> float | None:
    """Items embedded a second over all results for which any were; None where nothing was embedded."""
    items, seconds = 0.0, 0.0
    for result in results:
        embedded = result.provenance.get("counts", {}).get("embedded", 0)
        if embedded:
            items += embedded
            seconds += result.provenance.get("seconds", {}).get("embed", 0.0)
    return items / seconds if seconds else None


def gallery_plot(name: str, report: Report) -> Plot:
    """The scores of relevant candidates against those of hard negatives."""
    title = f"{report.results[0].model} on {report.task.name}: scores"
    return score_histogram(name, title, report.relevant_scores, report.wrong_scores)


def ablation_plots(variants: Sequence[Variant], suites: Iterable[str]) -> Iterator[Plot]:
    """A waterfall for each suite and kind of number, over the lineage of the variants."""
    for suite in suites:
        for kind in ("published", "measured"):
            known: Mapping[str, Average] = {
                v.name: getattr(v, kind)[suite] for v in variants if suite in getattr(v, kind)
            }
            steps = [_step(v, known) for v in variants if v.name in known]
            if any(step.base is not None for step in steps):
                yield waterfall(f"ablations-{suite}-{kind}", f"Ablations on {suite}, {kind}", steps)


def _step(variant: Variant, known: Mapping[str, Average]) -> Step:
    mine, parent = known[variant.name], known.get(variant.parent or "")
    name = f"{'  ' * variant.depth}{variant.name}"
    return Step(name, mine.value, None if parent is None else parent.value, mine.ci95)
