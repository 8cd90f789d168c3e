"""Tiny Qwen-VL checkpoints opened, items of every modality, and their vectors."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from harness.content import Image, Item, Part, Text, Video
from harness.models.input_spec import InputSpec
from harness.models.lamra import LAMRA_RET, LAMRA_RET_QWEN25VL
from harness.models.qwen_vl import QwenEmbedder, QwenFrontend, open_qwen
from harness.models.umarvel import UMARVEL, UMARVEL_QWEN3VL_4B

ARCHITECTURES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
MODELS = (UMARVEL, UMARVEL_QWEN3VL_4B, LAMRA_RET, LAMRA_RET_QWEN25VL)
ASK = "Find me an everyday image that matches the given caption."
PLAIN = InputSpec(dtype="float32")


def opened(tiny: Mapping[str, Path], architecture: str, spec: InputSpec = PLAIN) -> QwenFrontend:
    return open_qwen("tested", "", architecture, spec, {"path": str(tiny[architecture])})


def open_at(path: Path | str, architecture: str = "qwen2_vl", **given: str) -> QwenFrontend:
    return open_qwen("tested", "", architecture, PLAIN, {"path": str(path), **given})


def rows(frontend: QwenFrontend, items: Sequence[Item], embedder: QwenEmbedder | None = None) -> torch.Tensor:
    batch = pickle.loads(pickle.dumps(frontend.prepare(items)))
    return (embedder or frontend.load("cpu")).embed(batch)


def query(*parts: Part, instruction: str | None = None) -> Item:
    return Item("query", parts, instruction)


def items_of(media: Path) -> list[Item]:
    """Every modality, several pictures, with and without an instruction."""
    p, q, clip = Image(media / "p.png"), Image(media / "q.png"), Video(media / "12.mp4")
    return [
        query(Text("a red square")),
        query(Text("a much longer caption about two green circles beside a blue one"), instruction=ASK),
        query(p, instruction=ASK),
        Item("candidate", (q,)),
        query(p, Text("the same in red"), instruction=ASK),
        query(Text("first"), p, Text("then"), q, instruction=ASK),
        query(p, p),
        query(clip),
        query(clip, Text("a moving square"), instruction=ASK),
        query(Text("see"), clip, p, Text("and the other"), Video(media / "5.mp4")),
    ]


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1)
