"""A task: captions that name a colour, pictures that show it.

captions.jsonl: {"id": "p0", "image": "p0.png", "caption": "a red square"}
"""

import json
import sys
from pathlib import Path

from harness.collection import Collection, Pool
from harness.content import Candidate, Image, Query, Text
from harness.files import read_jsonl
from harness.metrics import MRR, Hit
from harness.task import Need, Task

CAPTIONS = Need(Path("colours/captions.jsonl"), "run python -m harness_colours.task DATA")


def load(data, protocol):
    file = CAPTIONS.require(data)
    rows = list(read_jsonl(file, ("id", "image", "caption")))
    queries = [Query(f"caption {r['id']}", (Text(r["caption"]),), "Find the picture.") for r in rows]
    pool = Pool("colours", [Candidate(r["id"], (Image(file.parent / r["image"]),)) for r in rows])
    return Collection(queries, pool, {f"caption {r['id']}": {r["id"]: 1} for r in rows})


def mini(data):
    from PIL import Image as Pillow

    folder = data / "colours"
    folder.mkdir(parents=True, exist_ok=True)
    captions = []
    for i, name in enumerate(["red", "green", "blue", "yellow", "black", "white"]):
        Pillow.new("RGB", (32, 32), name).save(folder / f"p{i}.png")
        captions.append({"id": f"p{i}", "image": f"p{i}.png", "caption": f"a {name} square"})
    (folder / "captions.jsonl").write_text("".join(json.dumps(c) + "\n" for c in captions))


TEXT_TO_IMAGE = Task(
    name="colours/text-to-image",
    title="Colour words to coloured squares",
    load=load,
    metrics=(Hit(1), MRR(10)),
    needs=lambda protocol: [CAPTIONS],
    mini=mini,
    source="this example",
    licence="Apache-2.0",
)

if __name__ == "__main__":
    mini(Path(sys.argv[1]))
