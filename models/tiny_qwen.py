"""Tiny random Qwen-VL checkpoints for tests: three generations, two layers, a tokenizer of their own.

write_tiny_qwen(folder, "qwen2_vl")   ->   config.json  model.safetensors  tokenizer.json  …
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.compat import allow_torchvision

from .checkpoint import quietly

TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>"),
    *("<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
"""Qwen2-VL's special tokens in their order, which come after the vocabulary."""

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen takes text apart before byte pairs are merged."""

_SPARE_ROWS = 8
"""Qwen's tables of embeddings have more rows than its tokenizers have tokens."""
_HIDDEN = 64


def write_tiny_qwen(folder: Path, architecture: str) -> Path:
    """A checkpoint of "qwen2_vl", "qwen2_5_vl" or "qwen3_vl", the same each time; returns the folder."""
    return write_qwen(folder, architecture, byte_pairs(_merges()), loud=True)


def write_qwen(
    folder: Path,
    architecture: str,
    tokenizer: Any,
    *,
    language: Mapping[str, Any] | None = None,
    vision: Mapping[str, Any] | None = None,
    seed: int = 0,
    loud: bool = False,
) -> Path:
    """A random checkpoint with this tokenizer and these settings of its two configurations; the folder.

    loud: weights so large that the vectors of a model without training differ, as tests want it; training
    starts from the usual ones.
    """
    allow_torchvision()
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    side = 16 if architecture == "qwen3_vl" else 14
    settings = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "min_pixels": (2 * side) ** 2,
        "max_pixels": 16_384 * (2 * side) ** 2,
        "patch_size": side,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "image_mean": [0.5, 0.5, 0.5] if side == 16 else [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.5, 0.5, 0.5] if side == 16 else [0.26862954, 0.26130258, 0.27577711],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    make_config, make_model, towers = {
        "qwen2_vl": (transformers.Qwen2VLConfig, transformers.Qwen2VLForConditionalGeneration, _QWEN2),
        "qwen2_5_vl": (
            transformers.Qwen2_5_VLConfig,
            transformers.Qwen2_5_VLForConditionalGeneration,
            _QWEN25,
        ),
        "qwen3_vl": (transformers.Qwen3VLConfig, transformers.Qwen3VLForConditionalGeneration, _QWEN3),
    }[architecture]
    size = tokenizer.get_vocab_size() + _SPARE_ROWS
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.token_to_id(TOKENS[0]))
    config: Any = make_config(
        text_config={**_LANGUAGE, **towers["language"], **(language or {}), **ends, "vocab_size": size},
        vision_config={**_VISION, **towers["vision"], **(vision or {})},
        image_token_id=tokenizer.token_to_id("<|image_pad|>"),
        video_token_id=tokenizer.token_to_id("<|video_pad|>"),
        vision_start_token_id=tokenizer.token_to_id("<|vision_start|>"),
        vision_end_token_id=tokenizer.token_to_id("<|vision_end|>"),
    )
    with torch.random.fork_rng(devices=[]), quietly():
        torch.manual_seed(seed)
        model: Any = make_model(config)
        for name, weight in model.named_parameters() if loud else ():
            # The usual 0.02 would leave the states of all tokens, and so all vectors, nearly equal
            if weight.ndim > 1:
                std = 1 if "embed_tokens" in name else 1.5 * weight[0].numel() ** -0.5
                torch.nn.init.normal_(weight, 0, std)
        model.save_pretrained(folder)
    return folder


_VISION = {"depth": 2, "num_heads": 2, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3}
_LANGUAGE = {
    "hidden_size": _HIDDEN,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32_768,
}
_MROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
_QWEN2: dict[str, dict[str, Any]] = {
    "vision": {"embed_dim": 32, "hidden_size": _HIDDEN, "mlp_ratio": 2, "patch_size": 14},
    "language": {"rope_parameters": _MROPE},
}
_QWEN25: dict[str, dict[str, Any]] = {
    "vision": {
        "hidden_size": 32,
        "out_hidden_size": _HIDDEN,
        "intermediate_size": 64,
        "patch_size": 14,
        "window_size": 56,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
    },
    "language": {"rope_parameters": _MROPE},
}
_QWEN3: dict[str, dict[str, Any]] = {
    "vision": {
        "hidden_size": 32,
        "out_hidden_size": _HIDDEN,
        "intermediate_size": 64,
        "patch_size": 16,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    },
    "language": {
        "head_dim": 16,
        "rope_parameters": {**_MROPE, "mrope_section": [4, 2, 2], "mrope_interleaved": True},
    },
}


def byte_pairs(merges: list[tuple[str, str]], vocabulary: dict[str, int] | None = None) -> Any:
    """A byte-level tokenizer that works as Qwen's; without a vocabulary, of the bytes and the merges."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    if vocabulary is None:
        pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
        vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, fuse_unk=False, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in TOKENS])
    return tokenizer


def learned_merges(texts: Iterable[str], count: int) -> list[tuple[str, str]]:
    """So many merges of the pairs that are the most frequent in these texts."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + count, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [(one, other) for one, other in merges]


def _merges() -> list[tuple[str, str]]:
    """A few words' worth of merges, each word built up from its left."""
    merges: dict[tuple[str, str], None] = {}
    for word in (
        "Ġthe",
        "Ġred",
        "Ġsquare",
        "Ġpicture",
        "system",
        "user",
        "assistant",
        "Ġcircles",
        "Ġcaption",
    ):
        for end in range(1, len(word)):
            merges[word[:end], word[end]] = None
    return list(merges)
