"""Visual Dialog: the picture that a dialog of ten questions and answers is about.

`visdial_1.0_val.json` holds tables of questions and answers, and dialogs that point into them:

    {"image_id": 185565, "caption": "two rings on a wall",
     "dialog": [{"question": 1, "answer": 0, "answer_options": […], "gt_index": 0}, … ten rounds]}

    185565   "Q: how many rings are there? A: two. Q: …? A: …."  ->  VisualDialog_val2018_000000185565.jpg

A question mark and a full stop are put behind every question and answer, whatever they end in. The
caption is not shown. The direction is LamRA's and U-MARVEL's, dialog → picture: FROMAGe (arXiv
2301.13823), whose format this is, publishes "text to image" numbers and ranks dialogs for a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.collection import Collection, Pool
from harness.content import Image, Text
from harness.errors import DataInvalid
from harness.metrics import MRR, Hit
from harness.records import Record, as_record, checked_text, read_json
from harness.task import Fact, Hub, Need, Protocol, Task

from .miniature import described, picture, write
from .wording import Wording, Wordings, marked, worded

_NAME = "visdial/dialog-to-image"
_SOURCE = (
    "take the folder visdial of code-kunkun/LamRA_Eval on Hugging Face, or visdial_1.0_val.zip and"
    " VisualDialog_val2018.zip of visualdialog.org/data"
)
_HUB = Hub("code-kunkun/LamRA_Eval", ("visdial/*", "visdial.*"))
_DIALOGS = Need(Path("visdial/visdial_1.0_val.json"), _SOURCE, hub=_HUB)
_PICTURES = Need(Path("visdial/VisualDialog_val2018"), _SOURCE, media=True, hub=_HUB)

_ASKED = Wordings(Wording("Find me an everyday image that matches the given dialog."))
_RERANKED = "Find the image that matches the dialogue"
_PROFILES = {
    "default": _ASKED,
    "umarvel": _ASKED.reranked(Wordings(Wording(marked(_RERANKED)))),
    "lamra": _ASKED.reranked(Wordings(Wording(_RERANKED))),
}


def _load(data_root: Path, protocol: Protocol) -> Collection:
    sides = worded(_NAME, protocol, _PROFILES, splits=("val",))
    path, folder = _DIALOGS.require(data_root), _PICTURES.require(data_root)
    data = as_record(read_json(path), str(path)).record("data")
    questions, answers = data.values("questions"), data.values("answers")
    dialogs: dict[int, str] = {}
    for dialog in data.records("dialogs"):
        image = dialog.integer("image_id")
        if image in dialogs:
            raise dialog.fault(f"image_id {image} has a dialog already: image ids must be unique")
        dialogs[image] = _told(dialog, questions, answers)
    return Collection(
        queries=[sides.query.query(str(image), (Text(text),)) for image, text in dialogs.items()],
        pool=Pool(
            "visdial", [sides.candidate.candidate(str(i), (Image(folder / _file(i)),)) for i in dialogs]
        ),
        qrels={str(image): {str(image): 1} for image in dialogs},
    )


def _told(dialog: Record, questions: Sequence[Any], answers: Sequence[Any]) -> str:
    """All rounds as one text. Raises DataInvalid."""
    rounds = dialog.records("dialog")
    if not rounds:
        raise dialog.fault("the dialog has no round")
    return " ".join(
        f"Q: {_said(one, 'question', questions)}? A: {_said(one, 'answer', answers)}." for one in rounds
    )


def _said(one: Record, kind: str, table: Sequence[Any]) -> str:
    index = one.integer(kind)
    if not 0 <= index < len(table):
        raise DataInvalid(f"{one.place}: {kind} {index} is none of the {len(table)} {kind}s of the file")
    return checked_text(table[index], f"{one.place}: {kind} {index}")


def _file(image: int) -> str:
    return f"VisualDialog_val2018_{image:012d}.jpg"


_MINI_ROUNDS = (
    ("is the photo in color", "yes"),
    ("is it close up", "yes, it is"),
    ("how many shapes are there", None),
    ("what color are they", None),
    ("what shape are they", None),
    ("are there any people", "no"),
    ("any animals", "no"),
    ("is it sunny", "i can't tell"),
    ("what is behind it", "a plain ground"),
    ("is that all", "yes"),
)
"""A question and what is answered; None: number, colour or shape, in this order."""


def _mini_answers(concept: int) -> list[str]:
    facts = iter(described(concept).split())
    return [next(facts) if answer is None else answer for _, answer in _MINI_ROUNDS]


def _mini(folder: Path) -> None:
    """Nine dialogs of ten rounds; the file's order is not that of the ids, and tables hold what no
    dialog uses, an empty answer among it."""
    images = {185565 + 7919 * (n * 5 % 9): 7 * n for n in range(9)}
    dialogs = [(image, _mini_answers(concept)) for image, concept in images.items()]
    questions = ["is it raining", *(question for question, _ in _MINI_ROUNDS)]
    answers = ["", *sorted({answer for _, answered in dialogs for answer in answered})]
    listed = [
        {
            "image_id": image,
            "caption": f"a drawing of {described(images[image])}",
            "dialog": [
                {"question": at, "answer": index, "answer_options": [index], "gt_index": 0}
                for at, index in enumerate(map(answers.index, answered), 1)
            ],
        }
        for image, answered in dialogs
    ]
    data = {"dialogs": listed, "questions": questions, "answers": answers}
    pictures = {
        f"VisualDialog_val2018/{_file(image)}": picture(concept, variant=concept)
        for image, concept in images.items()
    }
    file = {"version": "1.0", "split": "val2018", "data": data}
    write(folder / "visdial", {"visdial_1.0_val.json": file, **pictures})


TASKS = (
    Task(
        name=_NAME,
        title="VisDial: dialog of ten rounds → picture",
        load=_load,
        metrics=(Hit(1), Hit(5), Hit(10), MRR(10)),
        needs=lambda protocol: (_DIALOGS, _PICTURES),
        mini=_mini,
        source="Visual Dialog 1.0, Das et al. 2017 (arXiv 1611.08669), visualdialog.org",
        licence="CC BY 4.0 (label of a mirror, not confirmed at the source); pictures from Flickr",
        derived_from=("VisDial",),
        facts=(Fact("queries", 2064, "V"), Fact("candidates", 2064, "V")),
    ),
)
