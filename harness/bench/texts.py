"""Texts made up with lengths as in M-BEIR's pools, the same whenever they are made."""

from __future__ import annotations

import numpy as np

LENGTHS = ((0.40, 12, 0.4), (0.35, 90, 0.5), (0.15, 25, 0.5), (0.10, 45, 0.6))
"""Of texts in M-BEIR's pools, roughly: shares of captions, encyclopaedia sections, headlines and
descriptions, the mean number of words of each, and the spread of its logarithm (an assumption)."""

_NOUNS = (
    "animal apple arm baby ball band bank bear bed bell bird boat body book box boy bread bridge brother "
    "bus camera car card cat chair child church circle city clock cloud coat coffee corn cow cup dance day "
    "desk dinner doctor dog door dress drum ear earth egg engine eye face farm father field finger fire "
    "fish flag floor flower forest friend fruit game garden gate girl glass gold grass guitar hair hand hat "
    "head heart hill horse hotel house ice island jacket key king kitchen knife lake lamp leaf letter light "
    "lion machine map market milk money moon mother mountain mouth museum music neck nest night nose ocean "
    "office oil orange paint paper park path picture plane plant plate queen radio rain ring river road rock "
    "roof room rose school sea ship shirt shoe shop silver sister sky snow song star stone storm street "
    "summer sun table tea train tree valley village wall watch water wave wheel wind window winter wood yard"
)
WORDS = _NOUNS.split()
"""Each a token of its own in the usual vocabularies: a text has about as many tokens as words."""


def texts(count: int) -> list[str]:
    """In runs of one kind, as pools are: every data set follows the one before. No two are alike."""
    rng = np.random.default_rng(0)
    vocabulary = np.array(WORDS)
    found: list[str] = []
    for share, mean, spread in LENGTHS:
        lengths = np.exp(rng.normal(np.log(mean) - spread**2 / 2, spread, round(share * count)))
        for words in np.maximum(1, lengths).astype(int).tolist():
            found.append(f"{len(found)} " + " ".join(vocabulary[rng.integers(0, len(WORDS), words)].tolist()))
    return found
