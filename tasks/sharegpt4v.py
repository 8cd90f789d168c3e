"""ShareGPT4V-1k: 1,000 pictures, each with one caption of a paragraph, in both directions.

sharegpt4v/datas_for_validation.json is a list of records, pictures lie in sharegpt4v/val_data:

    [{"image_name": "sa_1.jpg", "caption": "A wooden pier leads into a calm lake. To the …"}, …]

so that `text-to-image` asks sa_1.jpg#0 "A wooden pier …" for sa_1.jpg, and `image-to-text` the reverse.
The origin (Long-CLIP) takes the first 1,000 entries of ShareGPT4V's captioner file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.records import read_records
from harness.task import Hub, Need

from .miniature import PLACES, picture, write
from .two_way import ASKED, ASKED_MARKED, FIND_CAPTION, FIND_IMAGE, Captioned, TwoWay, at_length, one_pass
from .wording import Wording

_FOLDER = Path("sharegpt4v")
_SOURCE = "put sharegpt4v of huggingface.co/datasets/code-kunkun/LamRA_Eval into the data folder"
_HUB = Hub("code-kunkun/LamRA_Eval", ("sharegpt4v/*", "sharegpt4v.*"))
_RECORDS = Need(_FOLDER / "datas_for_validation.json", _SOURCE, hub=_HUB)
_PICTURES = Need(_FOLDER / "val_data", _SOURCE, media=True, hub=_HUB)

# Both code bases embed once for both directions, LamRA with the instruction of image to text on the
# pictures, U-MARVEL with that of text to image on the captions; nothing follows its end marker.
PROFILES = {
    "default": ASKED,
    "umarvel": one_pass(caption=Wording(FIND_IMAGE, separator="")).reranked(ASKED_MARKED),
    "lamra": one_pass(picture=Wording(FIND_CAPTION)).reranked(ASKED),
}


def read(data_root: Path) -> Sequence[Captioned]:
    folder = _PICTURES.require(data_root)
    places: dict[str, str] = {}
    items = []
    for record in read_records(_RECORDS.require(data_root)):
        name = record.text("image_name")
        if name in places:
            raise record.fault(f"image_name {name!r} stands in {places[name]} too")
        places[name] = record.place
        items.append(Captioned(name, record.file("image_name", folder), (record.text("caption"),)))
    return items


def mini(folder: Path) -> None:
    names = {f"sa_{1000 + 7 * i}.jpg": (6 + 11 * i, PLACES[i]) for i in range(6)}
    records = [{"image_name": name, "caption": at_length(*shown)} for name, shown in names.items()]
    drawn = {f"val_data/{name}": picture(concept) for name, (concept, _) in names.items()}
    write(folder / _FOLDER, {"datas_for_validation.json": records, **drawn})


TASKS = TwoWay(
    name="sharegpt4v",
    title="ShareGPT4V-1k",
    read=read,
    needs=(_RECORDS, _PICTURES),
    profiles=PROFILES,
    pictures=1_000,
    captions=1_000,
    mini=mini,
    source="Chen et al. 2023, arxiv.org/abs/2311.12793; the split of Long-CLIP, arxiv.org/abs/2403.15378",
    licence="captions CC BY-NC 4.0, pictures under the licences of SA-1B, COCO and LCS",
    derived_from=("ShareGPT4V",),
).tasks()
