"""Qwen2-VL with random weights: of the published sizes, made where there is no checkpoint."""

from __future__ import annotations

import pytest
import torch

from harness.errors import UnknownName
from harness.models.random_qwen import RANDOM_QWEN


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))


@pytest.mark.parametrize(
    ("size", "language", "vision"),
    [
        # 28 · (3584 · (3584 + 2 · 512) + 3584 · 3584 + 3 · 3584 · 18,944) and the like: 6.525 billion
        ("7b", 6.525e9, 0.675e9),
        ("2b", 1.310e9, 0.665e9),
    ],
)
def test_the_sizes_are_those_of_the_published_checkpoints(size, language, vision):
    model = RANDOM_QWEN.open({"size": size}).load("meta").model
    counted = {
        name: sum(weight.numel() for key, weight in part.named_parameters() if "embed_tokens" not in key)
        for name, part in (("language", model.language_model), ("vision", model.visual))
    }
    assert counted["language"] == pytest.approx(language, rel=1e-3)
    assert counted["vision"] == pytest.approx(vision, rel=5e-3)
    assert model.dtype == torch.bfloat16


def test_the_sizes_are_told_apart_and_an_unknown_one_is_one_line():
    tiny, whole = (RANDOM_QWEN.open({"size": size}).identity for size in ("tiny", "7b"))
    assert tiny != whole
    with pytest.raises(UnknownName, match="unknown size '8b'"):
        RANDOM_QWEN.open({"size": "8b"})
