"""Distillation: the student's order of a query's candidates is drawn to that of recall and reranker fused.

cosines 0.9, 0.5, τ = 0.5    student softmax(1.8, 1.0) = 0.690, 0.310
fused   1.2, 1.6             teacher softmax(1.2, 1.6) = 0.401, 0.599   (fused / 2 / τ)
KL(teacher ‖ student) = 0.401 · ln(0.401 / 0.690) + 0.599 · ln(0.599 / 0.310) = 0.177

U-MARVEL (arXiv 2507.14902, §3.3); loss and defaults of its qwen2_vl_finetune_with_distillrerank.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from harness.content import item
from harness.errors import UnknownName
from harness.recipe import Settings, StageRun
from harness.run import Float32, Int64

from ..input_spec import InputSpec
from ..qwen_vl import QwenFrontend
from .corpus import Corpus, Visit, visit_at
from .joining import Bool, Places
from .lists import Lists, read
from .losses import distill_js, distill_kl, distill_tv, list_infonce, own_cosines, ranking_hinge
from .stage import Chunks, chunked, train_embedder, unchunked

if TYPE_CHECKING:
    from torch import Tensor

DIVERGENCES: Mapping[str, Callable[..., Tensor]] = {"kl": distill_kl, "js": distill_js, "tv": distill_tv}


class Prepared(Chunks):
    """A rank's share of a batch: N queries and, query by query, their K candidates."""

    teacher: Float32
    """[N, K] fused scores."""
    positives: Bool
    """[N, K]"""
    lengths: Int64
    """[N]: how many of the candidates are a query's own; what follows repeats the last."""


@dataclass(frozen=True, slots=True)
class Batches:
    """`Batches(…)[visits]`: what a rank prepares of a step, in a worker."""

    corpus: Corpus
    frontend: QwenFrontend
    lists: Lists
    width: int
    with_positives: bool
    seed: int
    chunk: int

    def __getitem__(self, numbers: list[int]) -> Prepared:
        found = [self._visit(number) for number in numbers]
        full = [_repeated(places, self.width) for _, places in found]
        items = [visit.query for visit, _ in found]
        items += [item(candidate) for places in full for candidate in self.lists.candidates(places)]
        chunks, order = chunked(self.frontend, items, self.chunk)
        return {
            "chunks": chunks,
            "order": order,
            "teacher": np.stack([places.value for places in full]),
            "positives": np.stack([places.positive for places in full]),
            "lengths": np.array([len(places.row) for _, places in found]),
            "visits": [(visit.task, visit.query_id) for visit, _ in found],
        }

    def _visit(self, number: int) -> tuple[Visit, Places]:
        index, random = visit_at(number, len(self.corpus), self.seed)
        lesson, row = self.corpus.place(index)
        listed = self.lists.of(lesson.task, row)
        return lesson.visit(row, random), chosen(
            listed, self.lists.about.depth, self.width, self.with_positives
        )


def chosen(places: Places, depth: int, width: int, with_positives: bool) -> Places:
    """The retrieved candidates (those that rank within `depth`), at most `width`; with the positives, all
    of these first, retrieved or not."""
    if with_positives:
        return places[np.lexsort((places.rank, ~places.positive))[:width]]
    return places[places.rank <= depth][:width]


def _repeated(places: Places, width: int) -> Places:
    return places[np.minimum(np.arange(width), len(places.row) - 1)]


def distill(run: StageRun, spec: InputSpec) -> None:
    """Run a distillation stage on the scores of the one that plays "teacher"; makes the merged checkpoint.

    Raises DataInvalid, HarnessError, UnknownName.
    """
    settings = run.settings
    if settings["divergence"] not in DIVERGENCES:
        raise UnknownName("divergence", str(settings["divergence"]), DIVERGENCES)

    def batches(corpus: Corpus, frontend: QwenFrontend) -> Batches:
        lists = read(run.inputs["teacher"], corpus, run)
        return Batches(
            corpus,
            frontend,
            lists,
            min(int(str(settings["depth"])), int(np.diff(lists.indptr).max())),
            bool(settings["with_positives"]),
            int(str(settings["seed"])),
            run.chunk,
        )

    train_embedder(run, spec, batches, loss)


def loss(rows: Tensor, batch: Prepared, temperature: Tensor | float, settings: Settings) -> Tensor:
    """The loss of this rank's queries, of [N(1 + K), D] in the order of its chunks; the mean over ranks,
    which are as many queries each, is the objective."""
    import torch

    count, width = batch["teacher"].shape
    queries, candidates = torch.split(unchunked(rows, batch), [count, count * width])
    cosines = own_cosines(queries, candidates.view(count, width, -1))
    teacher = torch.from_numpy(batch["teacher"]).to(rows.device)
    positives = torch.from_numpy(batch["positives"]).to(rows.device)
    total = rows.new_zeros(())
    for length in np.unique(batch["lengths"]).tolist():
        here = torch.from_numpy(np.flatnonzero(batch["lengths"] == length)).to(rows.device)
        student, scores, right = (each[here, :length] for each in (cosines, teacher, positives))
        total = total + len(here) / count * _of_lists(student, scores, right, temperature, settings)
    return total


def _of_lists(
    student: Tensor, teacher: Tensor, positives: Tensor, temperature: Tensor | float, settings: Settings
) -> Tensor:
    """The mean loss of lists of equal length, [N, K]."""
    divide, ranking, infonce = (float(str(settings[name])) for name in ("divide", "ranking", "infonce"))
    value = DIVERGENCES[str(settings["divergence"])](student, teacher, temperature, divide=divide)
    if ranking and student.shape[1] > 1:
        value = value + ranking * ranking_hinge(student, teacher, temperature)
    if infonce:
        value = value + infonce * list_infonce(student, positives, temperature)
    return value
