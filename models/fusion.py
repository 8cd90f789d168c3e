"""One vector from an item's parts, for models that see text and pictures apart.

A part's vector has unit length, a clip's is the mean of its frames', and an item's is the
normalised sum of its parts': score fusion (Wei et al. 2023, arXiv 2311.17136), in which query and
candidate are compared by the sum of all pairwise similarities. UniIR's own code adds the vectors as
they are, without bringing them to unit length: `uniir.py` does as it does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.content import Image, Item, Text, Video
from harness.errors import HarnessError
from harness.media import frame_count, frames, open_picture

if TYPE_CHECKING:
    import PIL.Image
    from torch import Tensor

ALL_MODALITIES = frozenset({"text", "image", "image,text", "interleaved", "video"})


@dataclass(frozen=True, slots=True)
class Layout:
    """Which rows make a part, and which parts an item. Rows: all texts, then all pictures."""

    part_of_row: list[int]
    item_of_part: list[int]

    def of_items(self, texts: Sequence[int], count: int) -> list[int]:
        """What is said of each text, added up for each of `count` items."""
        items = [self.item_of_part[part] for part in self.part_of_row[: len(texts)]]
        totals: list[int] = np.bincount(items, texts, minlength=count).astype(int).tolist()
        return totals


@dataclass(frozen=True, slots=True)
class Parts:
    """A batch taken apart; a clip is one part of several pictures."""

    texts: list[str]
    pictures: list[Any]
    layout: Layout


def take_apart(items: Sequence[Item], see: Callable[[PIL.Image.Image], Any], *, video_frames: int) -> Parts:
    """All texts, and all pictures and frames as `see` makes them. Raises DataInvalid."""
    texts: list[str] = []
    pictures: list[Any] = []
    part_of_text: list[int] = []
    part_of_picture: list[int] = []
    item_of_part: list[int] = []
    for index, item in enumerate(items):
        for part in item.parts:
            here = len(item_of_part)
            item_of_part.append(index)
            if isinstance(part, Text):
                texts.append(part.text)
                part_of_text.append(here)
            else:
                seen = [open_picture(part)] if isinstance(part, Image) else frames(part, count=video_frames)
                pictures += map(see, seen)
                part_of_picture += [here] * len(seen)
    return Parts(texts, pictures, Layout(part_of_text + part_of_picture, item_of_part))


def summed_cost(item: Item, text: Callable[[str], int], picture: int, *, video_frames: int) -> int:
    """What an item's parts cost one by one: `text(words)`, or so much for each picture and frame."""
    return sum(
        text(part.text)
        if isinstance(part, Text)
        else picture * (frame_count(part, count=video_frames) if isinstance(part, Video) else 1)
        for part in item.parts
    )


def fuse(rows: Sequence[Tensor], layout: Layout) -> Tensor:
    """[B, D] float32 unit rows from the texts' and the pictures' [N, D] rows.

    On the CPU: sums of a few rows each cost nothing there, and unlike a GPU's atomic additions
    they come out the same every time.
    """
    import torch

    every = torch.cat([r.detach().float().cpu() for r in rows])
    return _sums(_sums(every, layout.part_of_row), layout.item_of_part)


def _sums(rows: Tensor, group_of_row: Sequence[int]) -> Tensor:
    import torch
    from torch.nn.functional import normalize

    groups = torch.tensor(group_of_row, dtype=torch.long)
    sums = torch.zeros(int(groups.max()) + 1, rows.shape[1])
    return normalize(sums.index_add_(0, groups, normalize(rows, dim=-1)), dim=-1)


def frames_asked(model: str, value: str) -> int:
    """The option video-frames as a number; raises HarnessError."""
    if not value.isdecimal() or int(value) < 1:
        raise HarnessError(f"option video-frames of model {model!r} is a whole number from 1, not {value!r}")
    return int(value)


def stacked(pictures: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """[N, …], also of none."""
    return np.stack(pictures) if pictures else np.zeros(0, np.float32)
