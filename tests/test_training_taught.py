"""Base models whose embeddings are a sentence encoder's vectors of words."""

from __future__ import annotations

import numpy as np
import pytest
import training_toys as toys

from harness.errors import CheckpointMissing, UnknownName
from harness.models.text_encoder import TextTower, write_tiny_encoder
from harness.models.training import taught as module
from harness.models.training.taught import reduced, spelled, taught, words


@pytest.fixture
def teacher(tmp_path, monkeypatch) -> TextTower:
    folder = write_tiny_encoder(tmp_path / "teacher")
    monkeypatch.setattr(module, "minilm_folder", lambda: folder)
    return TextTower.at(folder)


def test_words_are_letters_and_stand_within_and_at_the_beginning_of_sentences(teacher):
    assert words(teacher)[:3] == ["a", "b", "c"]
    assert len(words(teacher)) == 26
    assert spelled(["red", "cat"]) == [" red", " cat", "red", "Red", "cat", "Cat"]


def test_likeness_of_words_is_the_teachers(teacher, tmp_path):
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    base = taught(toys.stage(tmp_path), "toy")
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    weights = load_file(base / "model.safetensors")
    table = weights["model.embed_tokens.weight"]
    assert (weights["lm_head.weight"] == table / 8).all()
    letters = words(teacher)
    ids = [tokenizer.encode(f" {letter}").ids for letter in letters]
    assert {len(row) for row in ids} == {1}
    ours = table[[row[0] for row in ids]].numpy()
    known = teacher.load("cpu", "float32").encode(teacher.tokenize(letters)).numpy()
    apart = [
        np.linalg.norm(rows[:, None] - rows[None], axis=-1)[np.triu_indices(26, 1)] for rows in (ours, known)
    ]
    np.testing.assert_allclose(apart[0] / apart[0].mean(), apart[1] / apart[1].mean(), rtol=1e-3)
    assert taught(toys.stage(tmp_path), "toy") == base


def test_reduced_vectors_are_principal_components_of_variance_1():
    import torch

    rows = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0, 1, 5, 1, 1])
    found = reduced(rows, 2)
    assert found.shape == (200, 2)
    assert float(found.square().mean()) == pytest.approx(1)
    assert abs(np.corrcoef(found[:, 0], rows[:, 0])[0, 1]) > 0.99
    assert reduced(rows, 7)[:, 5:].abs().max() == 0


def test_no_teacher_and_no_such_size_are_said(tmp_path, monkeypatch):
    def gone():
        raise CheckpointMissing("the weights package is not installed")

    monkeypatch.setattr(module, "minilm_folder", gone)
    with pytest.raises(CheckpointMissing, match="not installed"):
        taught(toys.stage(tmp_path), "toy")
    with pytest.raises(UnknownName):
        taught(toys.stage(tmp_path), "huge")
