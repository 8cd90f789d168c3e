"""Flickr30K, the 1,000 pictures of Karpathy's test split with five captions each, in both directions.

flickr/flickr_text.json is a list of 5,000 strings. Captions 5 to 9 belong to flickr/images/1.png:

    ["…", "…", "…", "…", "…", "Two dogs race over wet sand.", …]

so that `text-to-image` asks 1#0 "Two dogs race over wet sand." for 1, and
`image-to-text` asks 1 for any of 1#0 to 1#4. One caption stands under two pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from harness.task import Hub, Need

from .two_way import (
    ASKED,
    ASKED_MARKED,
    FIND_CAPTION,
    FIND_IMAGE,
    BothWays,
    Captioned,
    TwoWay,
    one_pass,
    read_fives,
    write_fives,
)
from .wording import Wording, Wordings, marked

_FOLDER = Path("flickr")
_SOURCE = "put flickr of huggingface.co/datasets/code-kunkun/LamRA_Eval into the data folder"
_HUB = Hub("code-kunkun/LamRA_Eval", ("flickr/*", "flickr.*"))
_CAPTIONS = Need(_FOLDER / "flickr_text.json", _SOURCE, hub=_HUB)
_PICTURES = Need(_FOLDER / "images", _SOURCE, media=True, hub=_HUB)

# The only set where U-MARVEL keeps LamRA's suffixes and normalises captions; nothing follows its end
# marker. Image to text as its source says to edit it: captions lose the instruction, not the rest.
_CAPTION_SUFFIX = "\nSummarize above sentence in one word: "
_UMARVEL = BothWays(
    to_image=Wordings(
        query=Wording(FIND_IMAGE, separator="", formatted=True, suffix=_CAPTION_SUFFIX),
        candidate=Wording(suffix="\nSummarize above image in one word: "),
    ),
    to_text=Wordings(
        query=Wording(
            FIND_CAPTION, separator="", suffix="\nSummarize above image and sentence in one word: "
        ),
        candidate=Wording(formatted=True, suffix=_CAPTION_SUFFIX),
    ),
).reranked(replace(ASKED_MARKED, to_image=Wordings(Wording(marked(FIND_IMAGE), formatted=True))))
# LamRA embeds once, with the instruction of image to text: its text to image finds instructed pictures.
_LAMRA = one_pass(picture=Wording(FIND_CAPTION)).reranked(ASKED)

PROFILES = {"default": ASKED, "umarvel": _UMARVEL, "lamra": _LAMRA}


def read(data_root: Path) -> Sequence[Captioned]:
    return read_fives(_CAPTIONS.require(data_root), _PICTURES.require(data_root))


def mini(folder: Path) -> None:
    """Six pictures; two of one concept share a caption."""
    write_fives(folder / _FOLDER, "flickr_text.json", "images", (3, 14, 25, 14, 47, 58))


TASKS = TwoWay(
    name="flickr",
    title="Flickr30K",
    read=read,
    needs=(_CAPTIONS, _PICTURES),
    profiles=PROFILES,
    pictures=1_000,
    captions=5_000,
    mini=mini,
    source="Young et al., TACL 2014, aclanthology.org/Q14-1006; Karpathy's 1K test split",
    licence="terms of Flickr, research use",
    derived_from=("Flickr30K",),
).tasks()
