"""Exact search: the best k of a pool for every query, and the exact place of every positive.

Scores are canonical (`scores`), so that neither tile nor thread count nor device shows in them. A
fast matrix product, whose error is bounded, only decides which pairs are worth a canonical score: in
float32, or on a CPU in bfloat16 at half the time where the processor has it and few of many
candidates are wanted (`tile`). Per tile, the maximum of every 64 scores is compared with what a query
still needs, so that most scores are read once (`top`; on CUDA `device`).
"""

from harness.search.galleries import scoped
from harness.search.plan import peak_memory, sifted
from harness.search.rows import ArrayRows
from harness.search.scores import best, rescore, tolerance
from harness.search.sweep import TORCH, check, only, placed, search
from harness.search.together import search_together

__all__ = [
    "TORCH",
    "ArrayRows",
    "best",
    "check",
    "only",
    "peak_memory",
    "placed",
    "rescore",
    "scoped",
    "search",
    "search_together",
    "sifted",
    "tolerance",
]
