"""Qwen2-VL at its real sizes with random weights: what a device can do, measured without a checkpoint.

harness bench encode -m qwen2-vl-random --model-arg size=7b --pictures --device cuda
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness.compat import allow_torchvision
from harness.errors import UnknownName
from harness.files import cache_dir
from harness.model import ModelSpec, options

from .checkpoint import CONFIG, quietly
from .input_spec import InputSpec
from .qwen_vl import QwenEmbedder, QwenFrontend, open_qwen
from .tiny_qwen import byte_pairs, learned_merges, write_qwen

NAME = "qwen2-vl-random"
_TINY = "tiny"


def _sizes(width: int, inner: int, heads: int, groups: int) -> dict[str, dict[str, Any]]:
    language = {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": 28,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }
    vision = {"depth": 32, "embed_dim": 1280, "hidden_size": width, "mlp_ratio": 4, "num_heads": 16}
    return {"text_config": language, "vision_config": vision}


SIZES = {"7b": _sizes(3584, 18_944, 28, 4), "2b": _sizes(1536, 8960, 12, 2), _TINY: {}}
"""As in the config.json of Qwen2-VL-7B-Instruct and Qwen2-VL-2B-Instruct; tiny: two layers."""


@dataclass(frozen=True, slots=True)
class RandomQwenFrontend(QwenFrontend):
    """Its tokenizer has the nouns that `harness bench` makes texts of, each as one token."""

    size: str

    @property
    def identity(self) -> Mapping[str, str]:
        return {**QwenFrontend.identity.__get__(self), "size": self.size}

    def load(self, device: str) -> QwenEmbedder:
        """Random weights, made on the device; of the tiny size those of its checkpoint."""
        if self.size == _TINY:
            return QwenFrontend.load(self, device)
        allow_torchvision()
        import torch
        import transformers

        config = self.checkpoint.config()
        for part, values in SIZES[self.size].items():
            config[part] = {**config[part], "layer_types": None, **values}
        make: Any = transformers.Qwen2VLModel._from_config
        with torch.random.fork_rng(), torch.device(device), quietly():
            torch.manual_seed(0)
            model = make(
                transformers.Qwen2VLConfig(**config),
                dtype=getattr(torch, self.spec.dtype),
                attn_implementation="sdpa",
            )
        return QwenEmbedder(model.eval().requires_grad_(False), self.spec, self.vision)


def _open(given: Mapping[str, str]) -> RandomQwenFrontend:
    chosen = options(NAME, given, {"size": "2b", "dtype": "bfloat16", "path": ""})
    if chosen["size"] not in SIZES:
        raise UnknownName("size", chosen["size"], SIZES)
    folder = Path(chosen["path"] or cache_dir() / NAME)
    if not (folder / CONFIG).is_file():
        _write(folder)
    spec = InputSpec()
    base = open_qwen(NAME, "", "qwen2_vl", spec, {"path": str(folder), "dtype": chosen["dtype"]})
    shared = {field.name: getattr(base, field.name) for field in fields(base)}
    return RandomQwenFrontend(**shared, size=chosen["size"])


def _write(folder: Path) -> None:
    from harness.bench.texts import WORDS

    folder.parent.mkdir(parents=True, exist_ok=True)
    merges = learned_merges([" " + " ".join(WORDS)] * 2, 2000)
    with TemporaryDirectory(dir=folder.parent) as place:
        written = write_qwen(Path(place) / folder.name, "qwen2_vl", byte_pairs(merges), loud=True)
        with suppress(OSError):  # another process may have been faster
            written.rename(folder)


def _tiny(folder: Path) -> Mapping[str, str]:
    _write(folder / NAME)
    return {"size": _TINY, "dtype": "float32", "path": str(folder / NAME)}


RANDOM_QWEN = ModelSpec(
    name=NAME,
    title="Qwen2-VL with random weights",
    open=_open,
    tiny=_tiny,
    source="https://huggingface.co/Qwen/Qwen2-VL-7B-Instruct",
    licence="Apache-2.0",
    input_spec=InputSpec().shown(),
)
