"""Small Qwen2-VL-shaped models that know English words: their embeddings are MiniLM's, all else is random.

base = "taught:tiny"   ->   results/training/base-taught-tiny-3c5f0a1b/   config.json  model.safetensors  …

What a picture shows is still to be learned, but a word that no stage has shown lies near those like it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.digest import digest
from harness.recipe import Settings, StageRun

from ..text_encoder import TextTower, minilm_folder
from ..tiny_qwen import byte_pairs, learned_merges
from .scratch import once, size_of, write_base

if TYPE_CHECKING:
    from torch import Tensor

TAUGHT = "taught:"
_LEAST_LETTERS = 1
_MOST_BEGINNINGS = 4000
"""So many of the frequent words begin sentences."""
_MOST_MERGES = 100_000
"""More than it takes to make a token of every word."""
_AT_A_TIME = 256
_TABLE = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"


def taught(run: StageRun, name: str) -> Path:
    """The folder of a base model of this size, written by the first rank where it is not there yet.

    Raises CheckpointMissing without all-MiniLM-L6-v2.
    """
    size, seed, teacher = size_of(name), int(str(run.settings["seed"])), TextTower.at(minilm_folder())

    def write(folder: Path) -> None:
        tokenizer = byte_pairs(learned_merges(spelled(words(teacher)), _MOST_MERGES))
        write_base(folder, size, tokenizer, seed)
        put_words(folder, tokenizer, teacher)

    return once(run, f"base-taught-{name}-{taught_fingerprint(name, run.settings)}", write)


def taught_fingerprint(name: str, settings: Settings) -> str:
    """What such a model is made of. Raises CheckpointMissing without all-MiniLM-L6-v2."""
    teacher = TextTower.at(minilm_folder())
    return digest([2, name, repr(size_of(name)), str(settings["seed"]), teacher.digest], length=8)


def words(teacher: TextTower) -> list[str]:
    """The English words of the teacher's vocabulary, the most frequent first."""
    model = json.loads((teacher.folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    return [word for word in model["vocab"] if _is_word(word)]


def spelled(words: Sequence[str]) -> list[str]:
    """The words as they stand within a sentence, and the frequent ones as one begins too."""
    begins = [form for word in words[:_MOST_BEGINNINGS] for form in (word, word.capitalize())]
    return [*(f" {word}" for word in words), *begins]


def _is_word(text: str) -> bool:
    return len(text) >= _LEAST_LETTERS and text.isascii() and text.isalpha()


def put_words(folder: Path, tokenizer: Any, teacher: TextTower) -> None:
    """Give all tokens of letters the principal parts of the teacher's vectors of them, of variance 1."""
    import torch
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    weights = load_file(path)
    said = {id: tokenizer.decode([id]).strip() for id in range(tokenizer.get_vocab_size())}
    said = {id: text for id, text in said.items() if _is_word(text)}
    table = weights[_TABLE]
    known = reduced(_vectors(teacher, list(said.values())), table.shape[1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        table.normal_()
    table[torch.tensor(list(said))] = known
    weights[_HEAD] = table / 8  # random, it could tell no word from another, which rerankers learn to
    save_file(weights, path, metadata={"format": "pt"})


def _vectors(teacher: TextTower, texts: Sequence[str]) -> Tensor:
    import torch

    encoder = teacher.load("cpu", "float32")
    parts = (texts[at : at + _AT_A_TIME] for at in range(0, len(texts), _AT_A_TIME))
    return torch.cat([encoder.encode(teacher.tokenize(part)) for part in parts])


def reduced(vectors: Tensor, width: int) -> Tensor:
    """[N, width] of [N, D]: the principal components, of variance 1 on the whole; more than D are 0."""
    import torch

    centred = vectors.double() - vectors.double().mean(0)
    _, axes = torch.linalg.eigh(centred.T @ centred)
    found = centred @ axes.flip(1)[:, :width]
    found = torch.nn.functional.pad(found, (0, width - found.shape[1]))
    return (found / found.square().mean().sqrt()).float()
