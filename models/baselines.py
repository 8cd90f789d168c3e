"""Weightless models: `random` (the scores of chance), and the checks `oracle` and `constant`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from harness.collection import Collection
from harness.content import Image, Item, Part, Text
from harness.digest import file_digest
from harness.errors import DataInvalid, HarnessError
from harness.model import Frontend, ModelSpec, options

from .fusion import ALL_MODALITIES

if TYPE_CHECKING:
    from torch import Tensor

OPTIONS = {"dim": "64", "seed": "0"}

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RandomFrontend:
    dim: int
    seed: int

    @property
    def identity(self) -> Mapping[str, str]:
        return {"version": "1", "dim": str(self.dim), "seed": str(self.seed)}

    @property
    def modalities(self) -> frozenset[str]:
        return ALL_MODALITIES

    @property
    def reads_instructions(self) -> bool:
        return False

    def cost(self, item: Item) -> int:
        return 1

    def prepare(self, items: Sequence[Item]) -> Rows:
        return np.stack([self._row(item) for item in items])

    def load(self, device: str) -> RandomEmbedder:
        return RandomEmbedder()

    def _row(self, item: Item) -> Rows:
        """[dim] of unit length. The role is left out: one picture, asked or found, is one vector.

        SHAKE-256 gives the numbers: the same on every machine and with every numpy.
        """
        content = json.dumps([self.seed, [_content(part) for part in item.parts]])
        numbers = hashlib.shake_256(content.encode()).digest(4 * self.dim)
        row = np.frombuffer(numbers, dtype="<i4").astype(np.float64) + 0.5  # never the zero vector
        return (row / np.linalg.norm(row)).astype(np.float32)


class RandomEmbedder:
    def embed(self, batch: Rows) -> Tensor:
        """[B, dim] float32 unit rows."""
        import torch

        return torch.from_numpy(batch)


def _content(part: Part) -> list[object]:
    if isinstance(part, Text):
        return ["text", part.text]
    try:
        media = file_digest(part.path)
    except OSError as error:
        raise DataInvalid(f"{part.path} cannot be read: {error.strerror}") from error
    if isinstance(part, Image):
        return ["image", media, part.crop, part.max_pixels]
    return ["video", media, part.frames, part.fps]


def _open(given: Mapping[str, str]) -> RandomFrontend:
    chosen = options("random", given, OPTIONS)
    try:
        dim, seed = int(chosen["dim"]), int(chosen["seed"])
    except ValueError as error:
        raise HarnessError(f"options dim and seed of model 'random' are whole numbers: {error}") from error
    if dim < 1:
        raise HarnessError(f"option dim of model 'random' is at least 1, not {dim}")
    return RandomFrontend(dim, seed)


def _tiny(folder: Path) -> Mapping[str, str]:
    return {}


RANDOM = ModelSpec(
    name="random",
    title="Random (chance)",
    open=_open,
    tiny=_tiny,
    source="a hash of the content",
    licence="Apache-2.0",
    input_spec={"all": "the bytes of each part, hashed", "instructions": "not read"},
)


def _oracle(collection: Collection) -> Frontend:
    from harness.testing import oracle

    return oracle(collection)


def _constant(collection: Collection) -> Frontend:
    from harness.testing import constant

    return constant()


def _not_opened(given: Mapping[str, str]) -> Frontend:
    raise HarnessError("a check model is built from a loaded task, not opened")


ORACLE = ModelSpec(
    name="oracle",
    title="Oracle (check: the ceiling)",
    open=_not_opened,
    tiny=_tiny,
    source="the task's own answers",
    licence="Apache-2.0",
    check=_oracle,
)
CONSTANT = ModelSpec(
    name="constant",
    title="Constant (check: the tie rule)",
    open=_not_opened,
    tiny=_tiny,
    source="one vector for everything",
    licence="Apache-2.0",
    check=_constant,
)
