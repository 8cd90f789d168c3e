"""NLI pairs of SimCSE: a sentence, one that follows from it, and one that contradicts it.

Rows of nli_for_simcse.csv, 275,601 of them:

    sent0,sent1,hard_neg
    "Two dogs run over wet sand.",Animals are outdoors.,The dogs are asleep.

The first sentence asks for the second; the third is one more candidate, to be mined and never right.
LamRA and U-MARVEL train their first stage on it, with the texts as they are and no instruction.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from harness.collection import Collection
from harness.content import Candidate, Query, Text
from harness.errors import DataInvalid
from harness.task import Fact, Hub, Need, Protocol, Task, one_instruction, only

from .miniature import PLACES, described, write_file
from .training_pairs import METRICS, SPLITS, Row, collected

_NAME = "nli/entailment"
_COLUMNS = ("sent0", "sent1", "hard_neg")
_REPOSITORY = "princeton-nlp/datasets-for-simcse"
_NEED = Need(
    Path("nli_for_simcse.csv"),
    f"put nli_for_simcse.csv of huggingface.co/datasets/{_REPOSITORY} into the data folder",
    hub=Hub(_REPOSITORY, ("nli_for_simcse.csv",)),
)


def load(data_root: Path, protocol: Protocol) -> Collection:
    only(_NAME, protocol, splits=SPLITS)
    one_instruction(_NAME, protocol, None)
    path = _NEED.require(data_root)
    return collected("nli", _rows(path), path)


def _rows(path: Path) -> Iterator[Row]:
    for n, texts in enumerate(_sentences(path)):
        asks, *others = (Text(text) for text in texts)
        answer, negative = (
            Candidate(f"{n}/{column}", (text,)) for column, text in zip(_COLUMNS[1:], others, strict=True)
        )
        yield Row(Query(str(n), (asks,)), answer, (negative,))


def _sentences(path: Path) -> Iterator[tuple[str, ...]]:
    """The three columns of each row; raises DataInvalid naming the line."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file)
            head = next(lines, [])
            lacking = [name for name in _COLUMNS if name not in head]
            if lacking:
                raise DataInvalid(
                    f"{path} has no column {', '.join(lacking)}: its first line must name"
                    f" {', '.join(_COLUMNS)}, as in {_REPOSITORY}"
                )
            places = [head.index(name) for name in _COLUMNS]
            for cells in lines:
                if len(cells) != len(head):
                    raise DataInvalid(
                        f"{path}, line {lines.line_num}: {len(cells)} cells, {len(head)} columns"
                    )
                yield tuple(cells[place] for place in places)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataInvalid(f"{path} is no CSV in UTF-8 ({error})") from error


def mini(folder: Path) -> None:
    """Eight rows; two ask the same, two have one answer, an answer contradicts another row, and one
    sentence needs its quotes."""
    rows = [",".join(_COLUMNS)]
    for i, place in enumerate(PLACES[:5]):
        named = described(11 * i)
        rows.append(f"There are {named} {place}.,Somebody sees {named}.,Nothing can be seen {place}.")
    first = described(0)
    rows.append(f"There are {first} {PLACES[0]}.,Something is {PLACES[0]}.,It is empty {PLACES[0]}.")
    rows.append(f"All of {first} lie still.,Somebody sees {first}.,{first.capitalize()} are gone.")
    rows.append(f'"{first.capitalize()}, and ""no more""",It is empty {PLACES[0]}.,')
    write_file(folder / _NEED.path, "\r\n".join([*rows, ""]))


TASK = Task(
    name=_NAME,
    title="NLI of SimCSE: sentence → what follows from it (training)",
    load=load,
    metrics=METRICS,
    needs=lambda protocol: (_NEED,),
    mini=mini,
    source="Gao et al. 2021, arxiv.org/abs/2104.08821; SNLI and MultiNLI",
    licence="SNLI CC BY-SA 4.0, MultiNLI under the licences of its sources",
    derived_from=("SNLI", "MultiNLI", "Flickr30K"),
    facts=(Fact("queries", 275_601, "L"),),
)
