"""Mined negatives: which of the candidates that a query retrieved it is trained against."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from harness.content import Candidate
from harness.recipe import StageRun

from .examples import Lesson, Visit


@dataclass(frozen=True, slots=True)
class Negatives:
    """What a mining stage found."""

    @classmethod
    def of(cls, run: StageRun) -> Negatives | None:
        """Of the stage that plays "negatives"; None where none does."""
        return None

    def added(self, visit: Visit, lesson: Lesson, row: int, random: np.random.Generator) -> Visit:
        """The visit with its negatives."""
        return visit

    def shuffled(self, lesson: Lesson, row: int, random: np.random.Generator) -> Iterator[Candidate]:
        """All that was mined for the query of that row, in any order."""
        return iter(())
