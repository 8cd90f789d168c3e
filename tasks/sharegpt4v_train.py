"""ShareGPT4V for training: captions of a paragraph, cut to about 256 tokens, each asking for its picture.

sharegpt4v-train/sharegpt4v_256.json, pictures below sharegpt4v-train/data in the folders of ShareGPT4V:

    [{"image": "/mnt/ShareGPT4V/data/sam/sa_25271.jpg", "txt": "In the middle of a busy mall, …"}, …]

Row 0 asks the text without an instruction for sam/sa_25271.jpg. U-MARVEL does not publish the file: how
many rows it has, and whether the 1,000 of `sharegpt4v` are among them, is not known.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from harness.collection import Collection
from harness.content import Candidate, Image, Query, Text
from harness.records import read_records
from harness.task import Need, Protocol, Task, one_instruction, only

from .miniature import PLACES, picture, write
from .training_pairs import METRICS, SPLITS, Row, collected, picture_name
from .two_way import at_length
from .wording import formatted

_NAME = "sharegpt4v-train/text-to-image"
_FOLDER = Path("sharegpt4v-train")
_CAPTIONS = Need(
    _FOLDER / "sharegpt4v_256.json",
    "make a JSON list of {image, txt} there from huggingface.co/datasets/Lin-Chen/ShareGPT4V,"
    " captions cut to 256 tokens",
)
_PICTURES = Need(
    _FOLDER / "data",
    "put the picture folders (coco, llava, sam, …) there as ShareGPT4V's docs/Data.md says"
    " (github.com/ShareGPT4Omni/ShareGPT4V)",
    media=True,
)


def load(data_root: Path, protocol: Protocol) -> Collection:
    only(_NAME, protocol, splits=SPLITS)
    one_instruction(_NAME, protocol, None)
    path = _CAPTIONS.require(data_root)
    return collected("sharegpt4v-train", _rows(path, _PICTURES.require(data_root)), path)


def _rows(path: Path, folder: Path) -> Iterator[Row]:
    for n, record in enumerate(read_records(path)):
        name = picture_name(folder, record.text("image"), record.place)
        query = Query(str(n), (Text(formatted(record.text("txt"))),))
        yield Row(query, Candidate(name, (Image(folder / name),)))


def mini(folder: Path) -> None:
    """Five pictures in two folders, their paths absolute, and a second caption of the first."""
    shown = [(f"{('sam', 'coco')[i % 2]}/{i:06}.jpg", 9 + 13 * i) for i in range(5)]
    captions = [
        {"image": f"/mnt/ShareGPT4V/data/{name}", "txt": at_length(concept, PLACES[i])}
        for i, (name, concept) in enumerate([*shown, shown[0]])
    ]
    drawn = {f"data/{name}": picture(concept) for name, concept in shown}
    write(folder / _FOLDER, {"sharegpt4v_256.json": captions, **drawn})


TASK = Task(
    name=_NAME,
    title="ShareGPT4V: paragraph → picture (training)",
    load=load,
    metrics=METRICS,
    needs=lambda protocol: (_CAPTIONS, _PICTURES),
    mini=mini,
    source="Chen et al. 2023, arxiv.org/abs/2311.12793",
    licence="captions CC BY-NC 4.0, pictures under the licences of SA-1B, COCO and LCS",
    derived_from=("ShareGPT4V", "COCO"),
)
