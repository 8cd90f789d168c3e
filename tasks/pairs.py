"""The right one of two captions of a picture: what CC-Neg and SugarCrepe have in common.

    Pair("17", 000000000139.jpg, "two red rings", "two blue rings")
      ->  picture 17, asked for among "17:right" and "17:wrong" alone

The score is the share of the pictures whose right caption scores higher; a tie is wrong, as in SugarCrepe's
script (RAIVNLab/sugar-crepe, main_eval.py), U-MARVEL and LamRA. CoN-CLIP, CLIP_benchmark and MTEB take
the first of two equal scores, which is the right caption: there a model that knows nothing scores 100.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.collection import Collection, Pool
from harness.content import Image, Text
from harness.metrics import ACCURACY

from .wording import Wording, Wordings, marked

METRICS = (ACCURACY,)

_FIND_CAPTION = "Find an image caption describing the following everyday image."
DEFAULT = Wordings(Wording(_FIND_CAPTION))
"""M-BEIR's words for a caption of a picture of MSCOCO; LamRA's rerankers are shown them too."""
MARKED = Wordings(Wording(marked(_FIND_CAPTION)))
"""The same as U-MARVEL's rerankers are shown it."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A picture, what is true of it and what is not."""

    id: str
    picture: Path
    right: str
    wrong: str


def collection(name: str, pairs: Iterable[Pair], wordings: Wordings) -> Collection:
    """The collection in which every picture is asked for its own two captions."""
    pairs = tuple(pairs)
    ask, offer = wordings.query, wordings.candidate
    return Collection(
        queries=[ask.query(pair.id, (Image(pair.picture),)) for pair in pairs],
        pool=Pool(
            name,
            [
                offer.candidate(f"{pair.id}:{kind}", (Text(text),))
                for pair in pairs
                for kind, text in (("right", pair.right), ("wrong", pair.wrong))
            ],
        ),
        qrels={pair.id: {f"{pair.id}:right": 1} for pair in pairs},
        scope={pair.id: [f"{pair.id}:right", f"{pair.id}:wrong"] for pair in pairs},
    )
