"""TART's pairs: an instruction, a text that asks, one that answers it and two that do not.

TART/tart_dual_first_vision.json is a list of records:

    [{"instruction": "Find the answer to this question", "query_text": "how tall is a giraffe",
      "pos_text": "Giraffes reach …", "neg_text": "Zebras live …", "hard_neg_text": "An okapi is …"}, …]

Row 0 asks with its own instruction for 0/pos_text; the two others are candidates too, and a negative
that is null or empty is none. Texts are in M-BEIR's form, as wherever U-MARVEL shows instructions. It
does not publish the file, nor how many rows it has.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from harness.collection import Collection
from harness.content import Candidate, Query, Text
from harness.records import Record, read_records
from harness.task import Need, Protocol, Task, one_instruction, only

from .miniature import PLACES, described, write
from .training_pairs import METRICS, SPLITS, Row, collected
from .wording import following, formatted

_NAME = "tart/instructed"
_FOLDER = Path("TART")
_NEED = Need(
    _FOLDER / "tart_dual_first_vision.json",
    "make a JSON list of {instruction, query_text, pos_text, neg_text, hard_neg_text} there from the"
    " training data of github.com/facebookresearch/tart",
)


def load(data_root: Path, protocol: Protocol) -> Collection:
    only(_NAME, protocol, splits=SPLITS)
    path = _NEED.require(data_root)
    return collected("tart", _rows(path, protocol), path)


def _rows(path: Path, protocol: Protocol) -> Iterator[Row]:
    for n, record in enumerate(read_records(path)):
        instruction = one_instruction(_NAME, protocol, formatted(record.text("instruction")))
        query = Query(str(n), (Text(following(instruction, record.text("query_text"))),), instruction)
        negatives = (name for name in ("neg_text", "hard_neg_text") if record.fields.get(name))
        yield Row(
            query, _candidate(n, record, "pos_text"), tuple(_candidate(n, record, name) for name in negatives)
        )


def _candidate(n: int, record: Record, name: str) -> Candidate:
    return Candidate(f"{n}/{name}", (Text(formatted(record.text(name))),))


def mini(folder: Path) -> None:
    """Six rows in two tasks; one text is asked under both instructions, two negatives are missing."""
    asked = ("Find a passage that answers the question", "find a sentence that means the same.")
    records = [
        {
            "instruction": asked[i % 2],
            "query_text": f"where are {described(14 * (i // 2 * 2))} found",
            "pos_text": f"{described(14 * i)} are found {PLACES[i]}, and {PLACES[i + 1]}.",
            "neg_text": f"{described(14 * i + 1)} are found {PLACES[i]}",
            "hard_neg_text": f"Nobody has found {described(14 * i)}.",
        }
        for i in range(5)
    ]
    records[2]["neg_text"] = ""
    del records[3]["hard_neg_text"]
    write(folder / _FOLDER, {_NEED.path.name: records})


TASK = Task(
    name=_NAME,
    title="TART: instructed text → text (training)",
    load=load,
    metrics=METRICS,
    needs=lambda protocol: (_NEED,),
    mini=mini,
    source="Asai et al. 2023, arxiv.org/abs/2211.09260",
    licence="CC BY-NC 4.0, texts under the licences of their data sets",
    derived_from=("TART",),
)
