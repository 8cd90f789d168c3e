"""Mined negatives: which of the candidates that a query retrieved it is trained against.

query 8:12, K = 2   retrieved 8:77 (its positive), 8:3 at 0.81, 8:9 at 0.66, 8:40 at 0.52
policy top, threshold 0.7  ->  8:9, 8:40        threshold none  ->  8:3, 8:9

The threshold is the paper's (arXiv 2507.14902, §3.2.2) as notes about it have it: it stands nowhere in the
released code, which takes the first K that are not labelled (`threshold` none) and has, besides, switches
by task between the first, the last and random ones (its datasets_mbeir_with_mixed_hard_neg_sample*.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from harness.content import Candidate, item
from harness.errors import DataInvalid, UnknownName
from harness.recipe import StageRun

from .corpus import Corpus, Lesson, Visit
from .joining import Bool, Places
from .lists import Lists, read

Choice = Literal["top", "last", "random"]

POLICIES: Mapping[str, Mapping[str, Choice]] = {
    "top": {"*": "top"},
    "last": {"*": "last"},
    "random": {"*": "random"},
    "two-strategy": {
        **dict.fromkeys(("mscoco_task0", "mscoco_task3", "fashion200k_task0", "fashion200k_task3"), "random"),
        **dict.fromkeys(("edis_task2", "nights_task4", "infoseek_task6", "infoseek_task8"), "random"),
        "cirr_task7": "random",
    },
    "three-strategy": {
        **dict.fromkeys(("mscoco_task0", "fashion200k_task0", "fashion200k_task3"), "last"),
        "fashioniq_task7": "last",
        **dict.fromkeys(("mscoco_task3", "nights_task4", "infoseek_task6", "infoseek_task8"), "random"),
    },
}
"""Policy → task, without its data set's place in front, → choice; top for all that are not named."""


def choice(policy: str, task: str) -> Choice:
    """What a policy takes of a task's lists. Raises UnknownName."""
    if policy not in POLICIES:
        raise UnknownName("policy", policy, POLICIES)
    by_task = POLICIES[policy]
    return by_task.get(task.rpartition("/")[2], by_task.get("*", "top"))


@dataclass(frozen=True, slots=True)
class Negatives:
    """K negatives for every query from each mining stage."""

    count: int
    tables: tuple[Lists, ...]

    @classmethod
    def of(cls, run: StageRun, corpus: Corpus) -> Negatives | None:
        """Of the stages that play "negatives" and "negatives-…"; None where none does.

        Raises DataInvalid where nothing is left of a table, UnknownName.
        """
        roles = sorted(role for role in run.inputs if role.partition("-")[0] == "negatives")
        if not roles:
            return None
        count, policy = int(str(run.settings["negatives"])), str(run.settings["policy"])
        threshold = run.settings["threshold"]
        most = np.inf if threshold is None else float(str(threshold))
        choices = [choice(policy, lesson.task) for lesson in corpus.lessons]
        sizes = [len(lesson.queries) for lesson in corpus.lessons]
        backwards, drawn = (np.repeat([c == word for c in choices], sizes) for word in ("last", "random"))

        def kept(places: Places) -> Bool:
            found: Bool = ~places.positive & (places.cosine <= most) & ~drawn[places.query]
            return found

        tables = []
        for role in roles:
            lists = read(run.inputs[role], corpus, run, kept=kept, most=count, backwards=backwards)
            if not len(lists.places.query) and not drawn.all():
                raise DataInvalid(
                    f"{run.inputs[role]} leaves no query a negative at threshold {threshold}: raise it, or"
                    " mine deeper"
                )
            tables.append(lists)
        return cls(count, tuple(tables))

    def added(self, visit: Visit, lesson: Lesson, row: int, random: np.random.Generator) -> Visit:
        """The visit with its negatives: fewer than K are repeated from the first, as released; where there
        is none, they are drawn from the pool. Raises DataInvalid where that has none."""
        chosen: list[Candidate] = []
        for lists in self.tables:
            found = lists.candidates(lists.of(lesson.task, row))
            found = found or self._drawn(lists, lesson, row, random)
            chosen += found + found[:1] * (self.count - len(found))
        return replace(visit, negatives=tuple(map(item, chosen)))

    def _drawn(self, lists: Lists, lesson: Lesson, row: int, random: np.random.Generator) -> list[Candidate]:
        """At most K of the candidates that are not labelled, of all pools or of the lesson's own."""
        pools = lists.corpus.lessons if lists.about.pool == "global" else (lesson,)
        ends = np.cumsum([len(pool.candidates) for pool in pools])
        labelled = lesson.labelled(row)
        enough = min(int(ends[-1]), self.count + len(labelled) * len(pools))
        found: list[Candidate] = []
        for number in random.choice(int(ends[-1]), enough, replace=False).tolist():
            at = int(np.searchsorted(ends, number, side="right"))
            candidate = pools[at].candidates[number - int(ends[at]) + len(pools[at].candidates)]
            if candidate.id not in labelled and len(found) < self.count:
                found.append(candidate)
        if not found:
            raise DataInvalid(
                f"the pool of {lesson.task} has nothing but positives of query {lesson.queries[row].id!r}"
            )
        return found
