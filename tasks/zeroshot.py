"""The zero-shot suites: the columns of the papers' tables, and one suite for each set with subsets.

A column, the average of GeneCIS' four subsets: Column("GeneCIS", "IT→I", ("genecis/change_object", …)).
"""

from __future__ import annotations

from harness.metrics import MAP, Hit
from harness.task import Column, Suite

GENECIS = ("change_object", "focus_object", "change_attribute", "focus_attribute")
SUGARCREPE = {
    "Add": ("add_att", "add_obj"),
    "Replace": ("replace_att", "replace_obj", "replace_rel"),
    "Swap": ("swap_att", "swap_obj"),
}
_CAPTIONS = {"ShareGPT4V": "sharegpt4v", "Urban1K": "urban1k", "Flickr30K": "flickr"}
_DIRECTIONS = {"T→I": "text-to-image", "I→T": "image-to-text"}

_GENECIS = tuple(f"genecis/{subset}" for subset in GENECIS)
_SUGARCREPE = {kind: tuple(f"sugarcrepe/{s}" for s in subsets) for kind, subsets in SUGARCREPE.items()}
_EVERY_SUGARCREPE = tuple(name for names in _SUGARCREPE.values() for name in names)

_IMAGE = (
    *(
        Column(title, arrow, (f"{folder}/{direction}",))
        for arrow, direction in _DIRECTIONS.items()
        for title, folder in _CAPTIONS.items()
    ),
    Column("CIRCO", "IT→I", ("circo/val",)),
    Column("GeneCIS", "IT→I", _GENECIS),
    Column("Visual Dialog", "Dialog→I", ("visdial/dialog-to-image",)),
    Column("Multi-turn FashionIQ", "Turns→I", ("multiturn-fashioniq/all",)),
    Column("CC-Neg", "Pair", ("ccneg/right-caption",)),
    Column("SugarCrepe", "Pair", _EVERY_SUGARCREPE),
)
_VIDEO = tuple(
    Column(title, "T→V", (f"{folder}/text-to-video",), Hit(k), in_average=k == 1)
    for title, folder in {"MSR-VTT": "msrvtt", "MSVD": "msvd"}.items()
    for k in (1, 5, 10)
)
_MORE = (
    *(Column("COCO (25,000 captions)", arrow, (f"coco/{d}",)) for arrow, d in _DIRECTIONS.items()),
    Column("VIST", "Story→I", ("vist/story-to-image",)),
)

SUITES = (
    Suite("zeroshot-image", "Zero-shot: images and texts", _IMAGE),
    Suite("zeroshot-video", "Zero-shot: text to video", _VIDEO),
    Suite("zeroshot", "Zero-shot", (*_IMAGE, *_VIDEO)),
    Suite("zeroshot-all", "Zero-shot, with COCO and VIST", (*_IMAGE, *_MORE, *_VIDEO)),
    Suite(
        "circo",
        "CIRCO, validation split",
        tuple(Column("CIRCO", "", ("circo/val",), MAP(k), in_average=k == 5) for k in (5, 10, 25, 50)),
    ),
    Suite(
        "genecis",
        "GeneCIS: four subsets and their mean",
        tuple(
            Column(subset.replace("_", " "), f"R@{k}", (f"genecis/{subset}",), Hit(k), in_average=k == 1)
            for k in (1, 2, 3)
            for subset in GENECIS
        ),
    ),
    Suite(
        "multiturn-fashioniq",
        "Multi-turn FashionIQ: all, and each category in its own gallery",
        tuple(
            Column(
                category,
                f"R@{k}",
                (f"multiturn-fashioniq/{category}",),
                Hit(k),
                in_average=k == 5 and category != "all",
            )
            for k in (5, 8, 10)
            for category in ("all", "dress", "shirt", "toptee")
        ),
    ),
    Suite(
        "sugarcrepe",
        "SugarCrepe: seven subsets, their mean, and the means of the three kinds",
        (
            *(
                Column(name.partition("/")[2].replace("_", " "), kind, (name,))
                for kind, names in _SUGARCREPE.items()
                for name in names
            ),
            *(Column(kind, "Mean", names, in_average=False) for kind, names in _SUGARCREPE.items()),
        ),
    ),
)
