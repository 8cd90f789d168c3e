"""GeneCIS: a picture and a word ask for the one of 10 or 15 pictures that keeps or changes what it names.

One entry of annotations/change_object.json (whole COCO pictures), and of change_attribute.json (crops):

    {"condition": "toaster", "reference": {"val_image_id": 139},
     "target": {"val_image_id": 2006}, "gallery": [{"val_image_id": 785}, …14]}
    {"condition": "brown", "reference": {"image_id": 2373241, "instance_bbox": [x, y, w, h]}, …}

    query 0:  picture 139 + "toaster"  ->  grade 1: 2006, among 2006, 785 and the other 13

The crops are those that LamRA ships, `vg/change_attribute/{image_id}_{template}_{slot}.jpg`: slot 0 is the
reference, 1 the target, 2 and on the gallery; the boxes are not read. A picture that a gallery holds twice
is one candidate: template 19 of change_object repeats its own target, a tie that nobody could win.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from harness.collection import Collection, Pool
from harness.content import Image, Query, Text
from harness.metrics import Hit
from harness.records import Record, read_records
from harness.task import Fact, Hub, Need, Protocol, Task

from .miniature import CONCEPTS, described, picture, write
from .wording import Wording, Wordings, marked, worded

_HUB = Hub("code-kunkun/LamRA_Eval", ("genecis/*", "genecis.*"))
_SOURCE = "take the folder genecis of code-kunkun/LamRA_Eval on Hugging Face"

# M-BEIR's wording for CIRR.
_CHANGED = "I'm looking for a similar everyday image with the described changes."
_SAME_ATTRIBUTES = "I'm looking for an image with the same attributes as described."
_SAME_OBJECT = "I'm looking for an image with the same object as described."
# U-MARVEL chose its wording among five by their scores on these very tasks.
_UMARVEL_CHANGED = (
    "I want you to retrieve an similar image with the described changes."
    " Show me an image that best captures the following the described changes."
)
_UMARVEL_SAME_ATTRIBUTES = (
    "I want you to retrieve an image with the same attributes as described."
    " Show me an image that best captures the following the same attributes."
)


@dataclass(frozen=True, slots=True)
class _Subset:
    """One of the four tasks: its instruction under each profile and its published count."""

    name: str
    default: str
    umarvel: str
    lamra: str
    queries: Fact

    @property
    def crops(self) -> bool:
        return self.name.endswith("_attribute")

    @property
    def annotations(self) -> Need:
        path = Path(f"genecis/annotations/{self.name}.json")
        return Need(path, f"{_SOURCE}, or genecis/ of github.com/facebookresearch/genecis", hub=_HUB)

    @property
    def pictures(self) -> Need:
        if self.crops:
            return Need(Path(f"genecis/vg/{self.name}"), f"{_SOURCE} (its crops)", media=True, hub=_HUB)
        source = f"{_SOURCE}, or unpack val2017.zip of cocodataset.org in genecis"
        return Need(Path("genecis/val2017"), source, media=True, hub=_HUB)

    @property
    def profiles(self) -> dict[str, Wordings]:
        return {
            "default": Wordings(Wording(self.default)),
            "umarvel": Wordings(Wording(self.umarvel, formatted=True)).reranked(
                Wordings(Wording(marked(self.umarvel), formatted=True))
            ),
            "lamra": Wordings(Wording(self.lamra)),
        }

    def needs(self, protocol: Protocol) -> tuple[Need, ...]:
        return (self.annotations, self.pictures)

    def picture(self, role: Record, template: int, slot: int) -> tuple[str, str]:
        """Its id as a candidate, and its file."""
        if self.crops:
            id = f"{_id(role, 'image_id')}_{template}_{slot}"
            return id, f"{id}.jpg"
        number = _id(role, "val_image_id")
        return str(number), f"{number:012d}.jpg"


# Both code bases give focus_object the sentence of the changes, against what the task asks for.
_SUBSETS = (
    _Subset(
        "change_object",
        default=_CHANGED,
        umarvel=_UMARVEL_CHANGED,
        lamra=_CHANGED,
        queries=Fact("queries", 1960, "V"),
    ),
    _Subset(
        "focus_object",
        default=_SAME_OBJECT,
        umarvel=_UMARVEL_CHANGED,
        lamra=_CHANGED,
        queries=Fact("queries", 1960, "V"),
    ),
    _Subset(
        "change_attribute",
        default=_CHANGED,
        umarvel=_UMARVEL_CHANGED,
        lamra=_CHANGED,
        queries=Fact("queries", 2112, "L"),
    ),
    _Subset(
        "focus_attribute",
        default=_SAME_ATTRIBUTES,
        umarvel=_UMARVEL_SAME_ATTRIBUTES,
        lamra=_SAME_ATTRIBUTES,
        queries=Fact("queries", 2000, "L"),
    ),
)


def _id(record: Record, field: str) -> int:
    """A whole number; a text of digits serves too, as it does in the code of LamRA."""
    value = record.get(field)
    return int(value) if isinstance(value, str) and value.isdecimal() else record.integer(field)


def _load(subset: _Subset, data_root: Path, protocol: Protocol) -> Collection:
    name = f"genecis/{subset.name}"
    wording = worded(name, protocol, subset.profiles)
    folder = subset.pictures.require(data_root)
    images: dict[str, Image] = {}
    queries: list[Query] = []
    scope: dict[str, list[str]] = {}
    for template, record in enumerate(read_records(subset.annotations.require(data_root))):
        roles = [record.record("reference"), record.record("target"), *record.records("gallery")]
        (reference, file), *found = (subset.picture(role, template, slot) for slot, role in enumerate(roles))
        gallery = dict(found)
        if len(gallery) < 2:
            raise record.fault("its gallery holds nothing beside the target")
        if reference in gallery:
            raise record.fault(f"its reference {reference} is in its gallery too")
        condition = Text(record.text("condition"))
        queries.append(wording.query.query(str(template), (Image(folder / file), condition)))
        scope[str(template)] = list(gallery)
        images |= {id: Image(folder / place) for id, place in gallery.items()}
    return Collection(
        queries=queries,
        pool=Pool(name, [wording.candidate.candidate(id, (image,)) for id, image in images.items()]),
        qrels={template: {gallery[0]: 1} for template, gallery in scope.items()},
        scope=scope,
    )


_MINI: Mapping[str, Sequence[tuple[str, ...]]] = {
    "change_object": (
        ("one red circle", "square", "one red square"),
        ("two blue rings", "triangle", "two blue triangles"),
        ("three green squares", "circle", "three green circles"),
        ("one black triangle", "ring", "one black ring"),
        ("two yellow circles", "square", "two yellow squares"),
        ("three purple rings", "circle", "three purple circles"),
    ),
    "focus_object": (
        ("one red circle", "circle", "three blue circles", "circle"),
        ("two blue rings", "ring", "one yellow ring", "ring"),
        ("three green squares", "square", "two black squares", "square"),
        ("one black triangle", "triangle", "three red triangles", "triangle"),
        ("two yellow circles", "circle", "one purple circle", "circle"),
        ("three purple rings", "ring", "two green rings", "ring"),
    ),
    "change_attribute": (
        ("one red circle", "blue", "one blue circle"),
        ("two blue rings", "green", "two green rings"),
        ("three green squares", "red", "three red squares"),
        ("one black triangle", "yellow", "one yellow triangle"),
        ("two yellow circles", "black", "two black circles"),
        ("three purple rings", "red", "three red rings"),
    ),
    "focus_attribute": (
        ("one red circle", "color", "two red squares", "red"),
        ("two blue rings", "color", "three blue circles", "blue"),
        ("three green squares", "number", "three black rings", "three"),
        ("one black triangle", "color", "two black rings", "black"),
        ("two yellow circles", "number", "two purple squares", "two"),
        ("three purple rings", "color", "one purple circle", "purple"),
    ),
}
"""Reference, condition, target, and what is kept: nothing else in the gallery has it (or is the target)."""


def _mini(folder: Path) -> None:
    """The four subsets, six templates each; the last of change_object repeats its target, as one of the
    real ones does."""
    files: dict[str, Any] = {}
    for subset in _SUBSETS:
        templates = []
        for template, row in enumerate(_MINI[subset.name]):
            shown = _shown(template, 9 if subset.name == "focus_attribute" else 14, *row)
            if (subset.name, template) == ("change_object", 5):
                shown[-1] = shown[1]
            reference, target, *gallery = [_role(subset, concept) for concept in shown]
            templates.append(
                {"condition": row[1], "reference": reference, "target": target, "gallery": gallery}
            )
            for slot, concept in enumerate(shown):
                role = Record("", _role(subset, concept))
                place = subset.pictures.path / subset.picture(role, template, slot)[1]
                files[str(place.relative_to("genecis"))] = picture(concept)
        files[f"annotations/{subset.name}.json"] = templates
    write(folder / "genecis", files)


def _shown(
    template: int, others: int, reference: str, condition: str, target: str, kept: str = ""
) -> list[int]:
    """The concepts of the reference, the target and the others, by slot."""
    names = [described(concept) for concept in range(CONCEPTS)]
    mixed = ((7 * template + 5 * step) % CONCEPTS for step in range(CONCEPTS))
    wrong = [at for at in mixed if names[at] != reference and (kept or target) not in names[at]]
    return [names.index(reference), names.index(target), *wrong[:others]]


def _role(subset: _Subset, concept: int) -> dict[str, Any]:
    """A picture as an annotation names it; two concepts can lie in one Visual Genome picture."""
    if subset.crops:
        return {"image_id": 2_370_000 + concept % 50, "instance_bbox": [8.0, 4.5, 30.0, 24.0]}
    return {"val_image_id": 139 + concept * 5077 % CONCEPTS * 7919}


TASKS = tuple(
    Task(
        name=f"genecis/{subset.name}",
        title=f"GeneCIS {subset.name}: picture and condition → picture of a gallery",
        load=partial(_load, subset),
        metrics=(Hit(1), Hit(2), Hit(3)),
        needs=subset.needs,
        mini=_mini,
        source="GeneCIS, Vaze et al. 2023, github.com/facebookresearch/genecis",
        licence="CC BY-NC 4.0; pictures under their Flickr licences, Visual Genome CC BY 4.0",
        derived_from=("Visual Genome" if subset.crops else "COCO val2017",),
        facts=(subset.queries,),
    )
    for subset in _SUBSETS
)
