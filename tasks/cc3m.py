"""CC3M-595K of LLaVA: captions from the web, each asking for its picture.

cc3m-595k/chat.json, as LLaVA published it, or cc3m-595k/train_anno.json, as U-MARVEL reads it; the
pictures lie in cc3m-595k/images:

    [{"id": "GCC_train_002582585", "image": "GCC_train_002582585.jpg", "conversations": [
        {"from": "human", "value": "Describe the image.\\n<image>"},
        {"from": "gpt", "value": "a harbour at dusk ."}]}, …]

    {"GCC_train_002582585": {"h5v": "/mnt/cc3m-595k/images/GCC_train_002582585.jpg", "h5a": "none.hdf5",
                             "text": "", "instruct_ans": ["a harbour at dusk ."]}, …}

Row 0 asks "A harbour at dusk ." without an instruction for GCC_train_002582585.jpg.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from harness.collection import Collection
from harness.content import Candidate, Image, Query, Text
from harness.records import Record, checked_text, read_records
from harness.task import Fact, Hub, Need, Protocol, Task, one_instruction, only

from .miniature import PLACES, described, picture, write
from .training_pairs import METRICS, SPLITS, Row, collected, picture_name
from .wording import formatted

_NAME = "cc3m/text-to-image"
_FOLDER = Path("cc3m-595k")
_REPOSITORY = "liuhaotian/LLaVA-CC3M-Pretrain-595K"
_SOURCE = f"put {{}} of huggingface.co/datasets/{_REPOSITORY} into the folder cc3m-595k"
_CAPTIONS = Need(
    _FOLDER / "chat.json",
    _SOURCE.format("chat.json"),
    otherwise=(_FOLDER / "train_anno.json",),
    hub=Hub(_REPOSITORY, ("chat.json",), into=_FOLDER),
)
_PICTURES = Need(
    _FOLDER / "images",
    _SOURCE.format("images.zip, unpacked as images,"),
    media=True,
    hub=Hub(_REPOSITORY, ("images.zip",), into=_FOLDER / "images"),
)


def load(data_root: Path, protocol: Protocol) -> Collection:
    only(_NAME, protocol, splits=SPLITS)
    one_instruction(_NAME, protocol, None)
    path = _CAPTIONS.require(data_root)
    return collected("cc3m", _rows(path, _PICTURES.require(data_root)), path)


def _rows(path: Path, folder: Path) -> Iterator[Row]:
    for n, record in enumerate(read_records(path)):
        field = "h5v" if "h5v" in record.fields else "image"
        name = picture_name(folder, record.text(field), record.place)
        query = Query(str(n), (Text(formatted(_caption(record))),))
        yield Row(query, Candidate(name, (Image(folder / name),)))


def _caption(record: Record) -> str:
    """What is said of the picture: the first answer."""
    if "instruct_ans" in record.fields:
        answers = record.values("instruct_ans")
    else:
        turns = record.records("conversations")
        answers = [turn.get("value") for turn in turns if turn.get("from") == "gpt"]
    if not answers:
        raise record.fault("no caption: neither an instruct_ans nor a turn from 'gpt'")
    return checked_text(answers[0], f"{record.place}: caption")


def mini(folder: Path) -> None:
    """Six pictures; two of one concept share a caption."""
    shown = {f"GCC_train_{i:09}": concept for i, concept in enumerate((2, 13, 24, 13, 46, 57))}
    chat = [
        {
            "id": name,
            "image": f"{name}.jpg",
            "conversations": [
                {"from": "human", "value": "Describe the image.\n<image>"},
                {"from": "gpt", "value": f"{described(concept)} {PLACES[concept % 5]} ."},
            ],
        }
        for name, concept in shown.items()
    ]
    drawn = {
        f"images/{name}.jpg": picture(concept, variant=i) for i, (name, concept) in enumerate(shown.items())
    }
    write(folder / _FOLDER, {"chat.json": chat, **drawn})


TASK = Task(
    name=_NAME,
    title="CC3M-595K of LLaVA: caption → picture (training)",
    load=load,
    metrics=METRICS,
    needs=lambda protocol: (_CAPTIONS, _PICTURES),
    mini=mini,
    source="Liu et al. 2023, arxiv.org/abs/2304.08485; Sharma et al. 2018, aclanthology.org/P18-1238",
    licence="terms of Conceptual Captions; the pictures belong to their owners",
    derived_from=("CC3M",),
    facts=(Fact("queries", 595_375, "L"),),
)
