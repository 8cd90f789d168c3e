"""MSCOCO, the 5,000 pictures of Karpathy's test split with five captions each, in both directions.

coco/coco_text.json is a list of 25,000 strings. Captions 5 to 9 belong to coco/coco_images/1.png:

    ["…", "…", "…", "…", "…", "A cat asleep on an open suitcase.", …]

so that `text-to-image` asks 1#0 "A cat asleep …" for 1, and `image-to-text` asks 1 for any
of 1#0 to 1#4. Three variants of this split are in use, and their scores are not comparable: these
25,000 captions, the first five of every picture (LamRA, U-MARVEL); all 25,010 (CLIP_benchmark); and
24,809 distinct ones, some of them of several pictures (M-BEIR: `mbeir-local/mscoco_task0`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.task import Hub, Need

from .two_way import ASKED, Captioned, TwoWay, one_pass, read_fives, write_fives

_FOLDER = Path("coco")
_SOURCE = "put coco of huggingface.co/datasets/code-kunkun/LamRA_Eval into the data folder"
_HUB = Hub("code-kunkun/LamRA_Eval", ("coco/*", "coco.*"))
_CAPTIONS = Need(_FOLDER / "coco_text.json", _SOURCE, hub=_HUB)
_PICTURES = Need(_FOLDER / "coco_images", _SOURCE, media=True, hub=_HUB)

# Both code bases score their language stage on this set, which knows no instructions.
PROFILES = {"default": ASKED, "umarvel": one_pass(), "lamra": one_pass()}


def read(data_root: Path) -> Sequence[Captioned]:
    return read_fives(_CAPTIONS.require(data_root), _PICTURES.require(data_root))


def mini(folder: Path) -> None:
    """Six pictures; two of one concept share a caption."""
    write_fives(folder / _FOLDER, "coco_text.json", "coco_images", (5, 16, 27, 38, 49, 27))


TASKS = TwoWay(
    name="coco",
    title="MSCOCO 5K Karpathy, 25,000 captions (five per picture)",
    read=read,
    needs=(_CAPTIONS, _PICTURES),
    profiles=PROFILES,
    pictures=5_000,
    captions=25_000,
    mini=mini,
    source="Chen et al. 2015, arxiv.org/abs/1504.00325; Karpathy's 5K test split",
    licence="captions CC BY 4.0, pictures under the Flickr licence of each",
    derived_from=("COCO",),
).tasks()
