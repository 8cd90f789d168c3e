"""Qwen2's own tokenizer, rebuilt without a hub from the ranks that the package dashscope carries.

A line of its file is a token in base 64 and its rank: "IQ== 0" is "!". `saved(folder)` writes what
transformers would have saved; `reference()` is tiktoken over the same ranks, somebody else's code.
"""

from __future__ import annotations

import base64
import importlib.util
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from harness.models.tiny_qwen import TOKENS, WORDS, byte_pairs


@cache
def ranks() -> dict[bytes, int]:
    spec = importlib.util.find_spec("dashscope")  # not imported: that takes seconds
    if spec is None or spec.origin is None:
        pytest.skip("dashscope is not installed")
    lines = (Path(spec.origin).parent / "resources" / "qwen.tiktoken").read_bytes().split(b"\n")
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}


def saved(folder: Path) -> Path:
    letters = _letters()
    known = ranks()

    def written(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = [tuple(map(written, _halves(token, known))) for token in known if len(token) > 1]
    vocabulary = {written(token): rank for token, rank in known.items()}
    file = folder / "tokenizer.json"
    byte_pairs(merges, vocabulary).save(str(file))
    return file


def reference() -> Any:
    tiktoken = pytest.importorskip("tiktoken")
    special = {token: len(ranks()) + i for i, token in enumerate(TOKENS)}
    return tiktoken.Encoding("qwen", pat_str=WORDS, mergeable_ranks=ranks(), special_tokens=special)


def _halves(token: bytes, known: dict[bytes, int]) -> list[bytes]:
    """The two tokens that were merged into this one: what merging leaves with the lower ranks alone."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [(known.get(a + b, len(known)), i) for i, (a, b) in enumerate(pairwise(parts))]
        _, at = min(pairs)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _letters() -> dict[int, str]:
    """The letter that stands for a byte in vocabularies of byte pairs (GPT-2)."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    return {**{b: chr(b) for b in printed}, **{b: chr(256 + i) for i, b in enumerate(others)}}
