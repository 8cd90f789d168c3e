"""Small Qwen2-VL-shaped models with random weights, to run whole recipes where no 7B model fits.

base = "scratch:tiny"   ->   results/training/base-tiny-3c5f0a1b/   config.json  model.safetensors  …

Their tokenizers are made of the texts of the tasks that the stage trains on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.content import Text
from harness.digest import digest
from harness.errors import UnknownName
from harness.recipe import StageRun

from ..tiny_qwen import byte_pairs, learned_merges, write_qwen
from .corpus import use

SCRATCH = "scratch:"


@dataclass(frozen=True, slots=True)
class Size:
    """Width, layers and heads of the language model and of the vision tower, and how many pairs of letters
    the tokenizer merges."""

    width: int
    layers: int
    heads: int
    vision_width: int
    vision_layers: int
    merges: int


SIZES = {
    "toy": Size(64, 2, 4, 32, 2, 100),
    "tiny": Size(128, 3, 4, 96, 4, 3000),
    "small": Size(512, 8, 8, 384, 8, 8000),
}


def scratch(run: StageRun, name: str) -> Path:
    """The folder of a base model of this size, written by the first rank where it is not there yet."""
    size, seed, uses = size_of(name), int(str(run.settings["seed"])), use(run.settings)
    made_of = [1, name, repr(size), seed, uses.tasks, uses.protocol.split]

    def write(folder: Path) -> None:
        write_base(folder, size, byte_pairs(learned_merges(_texts(run), size.merges)), seed)

    return once(run, f"base-{name}-{digest(made_of, length=8)}", write)


def size_of(name: str) -> Size:
    """Raises UnknownName."""
    if name not in SIZES:
        raise UnknownName("size of a small model", name, SIZES)
    return SIZES[name]


def once(run: StageRun, name: str, write: Callable[[Path], None]) -> Path:
    """The folder of this name in the output folder, filled by the first rank where it is not there yet."""
    folder = run.output_dir / name
    if run.ranks.rank == 0 and not folder.exists():
        part = folder.with_name(f"{name}.part")
        shutil.rmtree(part, ignore_errors=True)
        write(part)
        part.rename(folder)
    run.ranks.wait(run.engine.device)
    return folder


def write_base(folder: Path, size: Size, tokenizer: Any, seed: int) -> None:
    """A random checkpoint of this size."""
    write_qwen(
        folder,
        "qwen2_vl",
        tokenizer,
        language={
            "hidden_size": size.width,
            "intermediate_size": 3 * size.width,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.heads,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": _thirds(size.width // size.heads // 2),
            },
        },
        vision={
            "embed_dim": size.vision_width,
            "hidden_size": size.width,
            "depth": size.vision_layers,
            "num_heads": size.heads,
            "mlp_ratio": 3,
        },
        seed=seed,
    )


def _thirds(pairs: int) -> list[int]:
    """The rotated pairs of a head, shared out to time, height and width."""
    return [pairs - 2 * (pairs * 3 // 8), pairs * 3 // 8, pairs * 3 // 8]


def _texts(run: StageRun) -> Iterator[str]:
    """All texts of the tasks that the stage trains on."""
    uses = use(run.settings)
    for task in run.tasks(uses.tasks):
        collection = task.load(run.data, uses.protocol)
        for query in collection.queries:
            yield from (part.text for part in query.parts if isinstance(part, Text))
            yield query.instruction or ""
        for candidate in collection.pool:
            yield from (part.text for part in candidate.parts if isinstance(part, Text))
