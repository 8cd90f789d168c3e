"""Candidates made up as they are in M-BEIR's global pool: texts, pictures and both."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from harness.content import Image, Item, Part, Text
from harness.testing import write_picture

from .full_shape import CANDIDATES
from .texts import WORDS

POOLS = (
    *((542_246, 0, (396, 265)), (5000, 0, (336, 281)), (201_824, 0, (257, 491)), (544_457, 54, None)),
    *((1_047_067, 21, (396, 265)), (403_196, 20, (336, 285)), (537_568, 25, None), (24_809, 12, None)),
    *((61_707, 8, None), (40_038, 0, (256, 256)), (676_667, 122, None), (611_651, 137, None)),
    *(
        (74_381, 0, (260, 325)),
        (21_551, 0, (338, 275)),
        (335_135, 138, (329, 295)),
        (481_782, 140, (327, 298)),
    ),
)
"""M-BEIR's global pool, one local pool after the other: candidates, mean tokens of their texts (their mean
characters by 4.3) and mean size of their pictures. No texts, or no pictures: 0, None."""
_SPREAD = 0.5
"""Of the logarithm of a text's length within a pool: an assumption."""


def candidates(count: int, folder: Path) -> list[Item]:
    """Candidates as in M-BEIR's global pool, in its order; pictures are drawn, of one size a pool."""
    rng = np.random.default_rng(0)
    ends = np.cumsum([0, *(pool[0] for pool in POOLS)]) * count // CANDIDATES
    found: list[Item] = []
    for (_, mean, size), many in zip(POOLS, np.diff(ends).tolist(), strict=True):
        for _ in range(many):
            number = len(found)
            parts: list[Part] = []
            if size:
                parts.append(Image(write_picture(folder / f"{number}.jpg", seed=number, size=size)))
            if mean:
                words = max(1, int(np.exp(rng.normal(np.log(mean) - _SPREAD**2 / 2, _SPREAD))))
                parts.append(Text(" ".join(rng.choice(WORDS, words))))
            found.append(Item("candidate", tuple(parts)))
    return found
