"""Comparisons: models on the same queries, task by task and on a suite's average, with paired tests.

| Task      | Metric | A − B | 95 % CI     | p (Holm) | Effect | Win / tie / loss | Detectable |
| flickr/…  | R@1    |  +1.2 | [0.3, 2.1]  |   0.0140 |   0.05 |   112 / 4800 / 88 |        1.3 |
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

from harness.errors import HarnessError, ResultConflict
from harness.leaderboard import column_metric, percent, plain
from harness.metrics import Metric
from harness.outcomes import Outcomes
from harness.selection import Choice
from harness.statistics import (
    Float64,
    Paired,
    Strata,
    corrected,
    paired,
    rank_intervals,
    score,
    sum_ci,
)
from harness.task import Suite, Task


@dataclass(frozen=True, slots=True)
class Score:
    """A system's score in [0, 1], its 95 % interval, and the best and worst rank it can have."""

    model: str
    value: float
    ci95: tuple[float, float]
    rank: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two systems, and the first less the second."""

    first: str
    second: str
    test: Paired


@dataclass(frozen=True, slots=True)
class Line:
    """A task under a metric, or the average over a suite (`metric` None)."""

    title: str
    metric: str | None
    scores: tuple[Score, ...]
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Lines in the suites' order; every p is corrected for all tests in it."""

    models: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()


def compare(
    choices: Sequence[Choice],
    suites: Sequence[Suite],
    tasks: Mapping[str, Task],
    *,
    metric: Metric | None = None,
) -> Comparison:
    """Every pair of the choices on every task of the suites that they share, and on the suites' averages.

    `metric` replaces the columns' own. Raises HarnessError and ResultConflict where per-query
    outcomes lack it, are missing, or do not stand for the same queries.
    """
    outcomes = aligned(choices)
    found: dict[tuple[str, str | None], list[Strata]] = {}
    notes = []
    for suite in suites:
        weights = _weights(suite, tasks, metric)
        for task, one in weights:
            if task in outcomes[0]:
                found.setdefault((task, one.alias), [[_values(o[task], one, task)] for o in outcomes])
        averages = [average(suite, tasks, o, metric=metric) for o in outcomes]
        lacking = [task for task in suite.tasks if task not in outcomes[0]]
        whole = [a for a in averages if a is not None]
        if len(whole) == len(averages) and len(suite.tasks) > 1:
            found[f"Average of {suite.name}", None] = list(whole)
        elif lacking and len(lacking) < len(suite.tasks):
            notes.append(f"No average of {suite.name}: not all have {', '.join(lacking)}.")
    if not found:
        raise HarnessError(
            f"there is no common result of {', '.join(s.name for s in suites)}:"
            f" the models share {', '.join(outcomes[0])}"
        )
    labels = [choice.label for choice in choices]
    pairs = list(combinations(range(len(choices)), 2))
    tests = corrected([paired(strata[a], strata[b]) for strata in found.values() for a, b in pairs])
    lines = []
    for at, ((title, alias), strata) in enumerate(found.items()):
        mine = tests[at * len(pairs) : (at + 1) * len(pairs)]
        lines.append(_line(title, alias, labels, strata, dict(zip(pairs, mine, strict=True))))
    return Comparison(tuple(labels), tuple(lines), tuple(notes))


def _line(
    title: str,
    metric: str | None,
    labels: Sequence[str],
    strata: Sequence[Strata],
    tests: Mapping[tuple[int, int], Paired],
) -> Line:
    ranks = rank_intervals(range(len(labels)), tests)
    scores = tuple(
        Score(label, score(strata[i]), sum_ci(strata[i]), ranks[i]) for i, label in enumerate(labels)
    )
    pairs = tuple(Pair(labels[a], labels[b], test) for (a, b), test in tests.items())
    return Line(title, metric, scores, pairs)


def aligned(choices: Sequence[Choice]) -> list[dict[str, Outcomes]]:
    """Each choice's outcomes by task, queries joined by id; raises ResultConflict where they differ."""
    each = [
        {task: stored.outcomes().sorted() for task, stored in choice.results.items()} for choice in choices
    ]
    for choice, mine in zip(choices, each, strict=True):
        for task, outcomes in mine.items():
            first = each[0][task]
            if outcomes.queries != first.queries:
                apart = len(set(outcomes.queries) ^ set(first.queries))
                raise ResultConflict(
                    f"{task}: {choices[0].label} and {choice.label} were not scored on the same queries"
                    f" ({apart} are in one only): see 'harness bisect'"
                )
    return each


def average(
    suite: Suite,
    tasks: Mapping[str, Task],
    outcomes: Mapping[str, Outcomes],
    *,
    metric: Metric | None = None,
) -> list[Float64] | None:
    """The suite's average as strata: the mean of its columns, each the mean of its tasks.

    A stratum is a task, or all tasks with the same query ids: those of a local and a global pool are
    the same queries, to be resampled together. None where a task is missing.
    """
    weights = {key: weight for key, weight in _weights(suite, tasks, metric).items() if weight}
    if any(task not in outcomes for task, _ in weights):
        return None
    strata: dict[tuple[str, ...], Float64] = {}
    for (task, one), weight in weights.items():
        asked = outcomes[task].queries
        strata[asked] = strata.get(asked, 0.0) + weight * _values(outcomes[task], one, task)
    return list(strata.values())


def _weights(
    suite: Suite, tasks: Mapping[str, Task], metric: Metric | None
) -> dict[tuple[str, Metric], float]:
    """How much a task's metric counts in the suite's average; 0 where its column does not."""
    columns = len([column for column in suite.columns if column.in_average])
    weights: dict[tuple[str, Metric], float] = {}
    for column in suite.columns:
        share = 1 / (columns * len(column.tasks)) if column.in_average else 0.0
        for task in column.tasks:
            key = (task, metric or column_metric(column, tasks))
            weights[key] = weights.get(key, 0.0) + share
    return weights


def _values(outcomes: Outcomes, metric: Metric, task: str) -> Float64:
    if metric.key not in outcomes.values:
        known = ", ".join(str(Metric.parse(key)) for key in outcomes.values)
        raise HarnessError(f"{task} was not scored with {metric}: it has {known}")
    return outcomes.values[metric.key]


def render(comparison: Comparison, *, title: str) -> str:
    """Markdown: scores (with ranks, where more than two are compared) and a line for every test."""
    many = len(comparison.models) > 2
    names = [plain(model) for model in comparison.models]
    blocks = [_scores(comparison, names)] if many else []
    blocks.append(_tests(comparison, names, many))
    notes = [
        "Scores in percent, differences in points: the first model less the second; **bold**: significant.",
        "95 % CI: bootstrap over queries, 10,000 resamples. p (Holm): paired randomisation test, corrected"
        f" for the {sum(len(line.pairs) for line in comparison.lines)} tests shown. Effect: mean over"
        " standard deviation of the paired differences; odds: wins over losses of 0/1 outcomes.",
        "Detectable: the least true difference that such a test finds four times in five.",
    ]
    if many:
        notes.append("In brackets: the ranks that the corrected tests leave possible.")
    below = "".join(f"{note}  \n" for note in [*notes, *comparison.notes])
    return f"### {title}\n\n" + "\n\n".join(blocks) + f"\n\n{below}"


def _scores(comparison: Comparison, names: Sequence[str]) -> str:
    body = [
        [
            plain(line.title),
            line.metric or "",
            *(f"{percent(s.value)} ({_interval_of_ranks(s.rank)})" for s in line.scores),
        ]
        for line in comparison.lines
    ]
    return _table(["Task", "Metric", *names], body, left=2)


def _interval_of_ranks(rank: tuple[int, int]) -> str:
    return f"{rank[0]}" if rank[0] == rank[1] else f"{rank[0]}–{rank[1]}"


def _tests(comparison: Comparison, names: Sequence[str], many: bool) -> str:
    lead = ["Pair"] if many else []
    head = ["Task", "Metric", *lead, *([] if many else names), "Difference", "95 % CI", "p", "p (Holm)"]
    head += ["Effect", "Win / tie / loss", "Detectable"]
    body = []
    for line in comparison.lines:
        for pair in line.pairs:
            test = pair.test
            values = [percent(test.first), percent(test.second)]
            about = [plain(f"{pair.first} − {pair.second}")] if many else values
            gap = f"{100 * test.difference:+.1f}"
            body.append(
                [
                    *(plain(line.title), line.metric or "", *about),
                    f"**{gap}**" if test.significant else gap,
                    f"[{', '.join(f'{100 * end:.1f}' for end in test.ci95)}]",
                    *(_chance(test.p), _chance(test.adjusted), _effect(test)),
                    f"{test.wins} / {test.ties} / {test.losses}",
                    percent(test.mdd),
                ]
            )
    return _table(head, body, left=2 + many)


def _effect(test: Paired) -> str:
    shown = percent(None) if test.effect is None else f"{test.effect:.2f}"
    return shown if test.odds is None else f"{shown}, odds {test.odds:.2f}"


def _chance(p: float) -> str:
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"


def _table(head: Sequence[str], body: Sequence[Sequence[str]], *, left: int) -> str:
    from tabulate import tabulate

    align = [*["left"] * left, *["right"] * (len(head) - left)]
    return tabulate(body, headers=head, tablefmt="pipe", colalign=align, disable_numparse=True)


def as_json(comparison: Comparison) -> str:
    """Full precision, shares in [0, 1]."""
    return json.dumps(asdict(comparison), indent=2, ensure_ascii=False) + "\n"
