"""Tiny random CLIP, SigLIP and BLIP checkpoints for tests, with tokenizers of their own.

write_tiny_clip(folder)   ->   config.json  model.safetensors  tokenizer.json  preprocessor_config.json
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from harness.compat import allow_torchvision

from .checkpoint import quietly

T = TypeVar("T")

SIDE = 32
LETTERS = 256
"""The text limit: dialogs that differ late are not told apart by less, for a letter is a token here."""
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_WORDS = (
    *("a red square", "two green circles beside a small blue one", "nothing but noise"),
    *("find the picture", "say what the news is about", "a much longer caption about it"),
)


def write_tiny_clip(folder: Path) -> Mapping[str, str]:
    """A CLIP of two layers a tower; returns the options that open it."""
    allow_torchvision()
    import transformers

    tokens = _write_clip_tokenizer(folder)
    text = {"vocab_size": tokens, "bos_token_id": tokens - 2, "eos_token_id": tokens - 1}
    config = transformers.CLIPConfig(
        text_config={**text, **SIZES, "max_position_embeddings": LETTERS},
        vision_config={**SIZES, "image_size": SIDE, "patch_size": 8},
        projection_dim=16,
    )
    _save(lambda: transformers.CLIPModel(config), folder)
    picture = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    write_picture_settings(folder, "CLIPImageProcessor", picture)
    return {"path": str(folder)}


def write_tiny_siglip(folder: Path) -> Mapping[str, str]:
    """A SigLIP of two layers a tower, with a sentencepiece vocabulary; returns the options that open it."""
    allow_torchvision()
    import sentencepiece
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_WORDS),
        model_writer=model,
        vocab_size=60,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
    )
    (folder / "spiece.model").write_bytes(model.getvalue())
    saved = {"tokenizer_class": "SiglipTokenizer", "model_max_length": LETTERS, "pad_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(saved))
    text = {"vocab_size": 60, "max_position_embeddings": LETTERS, "projection_size": 32}
    text |= {"bos_token_id": 1, "eos_token_id": 1}
    config = transformers.SiglipConfig(
        text_config={**SIZES, **text},
        vision_config={**SIZES, "image_size": SIDE, "patch_size": 8},
    )
    _save(lambda: transformers.SiglipModel(config), folder)
    write_picture_settings(folder, "SiglipImageProcessor", {"size": {"height": SIDE, "width": SIDE}})
    return {"path": str(folder)}


def _write_clip_tokenizer(folder: Path) -> int:
    """CLIP's byte pairs without any merge: every byte is a token; returns how many there are."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: at for at, piece in enumerate(pieces)}
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=LETTERS).save_pretrained(folder)
    return len(pieces)


def write_bert_tokenizer(folder: Path) -> int:
    """BERT's word pieces over single characters; returns how many there are."""
    from transformers import BertTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789'-,.?!"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {piece: at for at, piece in enumerate(pieces)}
    BertTokenizer(vocab=vocabulary, model_max_length=LETTERS).save_pretrained(folder)
    return len(pieces)


def write_picture_settings(folder: Path, processor: str, settings: Mapping[str, Any]) -> None:
    shown = {"image_processor_type": processor, "resample": 3, **settings}
    (folder / "preprocessor_config.json").write_text(json.dumps(shown))


def _save(make: Callable[[], Any], folder: Path) -> None:
    with quietly():
        lively(make).save_pretrained(folder)


def lively(make: Callable[[], T]) -> T:
    """A new model, or several by name, the same each time; the usual initial weights of 0.02 would leave
    the rows of a random model nearly equal."""
    import torch

    with torch.random.fork_rng(devices=[]), torch.no_grad(), quietly():
        torch.manual_seed(0)
        made: Any = make()
        for model in made.values() if isinstance(made, dict) else [made]:
            for weight in model.parameters():
                if weight.ndim > 1:
                    weight.normal_(std=0.2)
    return made  # type: ignore[no-any-return]
