"""U-MARVEL's recipe at other scales."""

from __future__ import annotations

from collections.abc import Mapping

from harness.recipe import Settings, Use
from harness.task import Protocol

_BASE: Settings = {"base": "taught:tiny", "max_pixels": 84 * 84, "text_tokens": 48, "dtype": "float32"}
_ALL: Settings = {**_BASE, "system": None}
_WEIGHTS: Settings = {
    **{"lora_rank": None, "train_vision": True, "gradient_checkpointing": False},
    **{"batch": 64, "epochs": 1000, "warmup": 0.15, "save_every": 25},
}
_PARTS: Settings = {"crop": 0.6}
_MIXTURE: Settings = {
    "tasks": (
        "stamps/text-to-image-en,stamps/image-to-text-en,stamps/image-to-category,stamps/category-to-image"
    )
}

TINY: Mapping[str, Settings] = {
    "nli": {
        **_ALL,
        **_WEIGHTS,
        **{"tasks": "stamps/translation", "learning_rate": 3e-4, "most_steps": 20},
    },
    "cc3m": {
        **_ALL,
        **_WEIGHTS,
        **_PARTS,
        **{"tasks": "stamps/text-to-image-en", "learning_rate": 5e-4, "most_steps": 320},
    },
    "mbeir": {**_ALL, **_WEIGHTS, **_PARTS, **_MIXTURE, "learning_rate": 3e-4, "most_steps": 100},
    "mine": {**_ALL, **_MIXTURE},
    "mine-local": {**_ALL, **_MIXTURE},
    "hard-negatives": {
        **_ALL,
        **_WEIGHTS,
        **_PARTS,
        **_MIXTURE,
        **{"batch": 48, "learning_rate": 3e-5, "most_steps": 20, "threshold": 0.9},
    },
    "reranker": {
        **_BASE,
        **_WEIGHTS,
        **_MIXTURE,
        **{"init": "retriever", "batch": 16, "learning_rate": 1e-3, "most_steps": 100},
    },
    "score": {**_ALL, **_MIXTURE, "share": 0.3, "depth": 20, "weights": "*=1.0"},
    "distill": {
        **_ALL,
        **_WEIGHTS,
        **_MIXTURE,
        **{"share": 0.3, "depth": 20, "batch": 8, "learning_rate": 1e-5, "most_steps": 20},
    },
}

PRESETS: Mapping[str, Mapping[str, Settings]] = {"tiny": TINY}
"""`tiny`: all stages on two cores in a quarter of an hour, on the stamps."""

BOARDS: Mapping[str, Use] = {
    "tiny": Use(
        "stamps/text-to-image-en,stamps/image-to-text-en,stamps/image-to-category,stamps/category-to-image",
        Protocol(split="test"),
    )
}
"""Held-out pictures."""
