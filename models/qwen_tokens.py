"""The tokenizer of a Qwen-VL checkpoint: pieces of input in, token ids out.

[Piece("<|im_start|>", token=True), Piece("user\\n")]   ->   [151644, 872, 198]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

from harness.errors import CheckpointMissing, HarnessError

from .input_spec import InputSpec, Piece, marked_stretches

PAD = "<|endoftext|>"
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
NEEDED = ("<|im_start|>", "<|im_end|>", VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD, PAD)


@dataclass(frozen=True, slots=True)
class Row:
    """An item as tokens; `pooled`: which of them count in mean pooling."""

    ids: list[int]
    pooled: list[bool]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A saved tokenizer, and the special tokens that it is given where it lacks them, in this order."""

    file: Path
    added: tuple[str, ...]

    @classmethod
    def at(cls, file: Path, added: tuple[str, ...]) -> Vocabulary:
        """Raises CheckpointMissing where the file is no tokenizer of Qwen-VL."""
        vocabulary = cls(file, added)
        lacking = [token for token in NEEDED if vocabulary._tokenizer.token_to_id(token) is None]
        if lacking:
            raise CheckpointMissing(
                f"{file} is no tokenizer of Qwen-VL: it lacks {', '.join(lacking)};"
                " take the checkpoint's own tokenizer.json"
            )
        return vocabulary

    @property
    def _tokenizer(self) -> Any:
        return _tokenizer(self.file, self.added)

    def id(self, token: str) -> int:
        """The id of a special token; raises HarnessError where there is none."""
        id = self._tokenizer.token_to_id(token)
        if id is None:
            raise HarnessError(f"the tokenizer {self.file} has no token {token}")
        return int(id)

    @property
    def rows(self) -> int:
        """How many rows the table of embeddings must have."""
        return 1 + max(self.id(token) for token in (*NEEDED, *self.added))

    def ids(self, text: str) -> list[int]:
        """Of plain text."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def first(self, text: str) -> int | None:
        """The token that a plain text begins with; None where it begins with none."""
        ids = self.ids(text)[:1]
        return ids[0] if ids and text.startswith(self._tokenizer.decode(ids)) else None

    def row(self, pieces: Sequence[Piece]) -> Row:
        """All pieces as one row. Plain pieces side by side are tokenised together, as they are where
        the whole input is one string."""
        ids: list[int] = []
        pooled: list[bool] = []
        for token, group in groupby(pieces, key=lambda piece: piece.token):
            if token:
                for piece in group:
                    ids += [self.id(piece.text)] * piece.times
                    pooled += [piece.pooled] * piece.times
            else:
                self._add_plain(list(group), ids, pooled)
        return Row(ids, pooled)

    def _add_plain(self, pieces: Sequence[Piece], ids: list[int], pooled: list[bool]) -> None:
        encoding = self._tokenizer.encode("".join(p.text for p in pieces), add_special_tokens=False)
        ids += encoding.ids
        if len({p.pooled for p in pieces}) == 1:
            pooled += [pieces[0].pooled] * len(encoding.ids)
            return
        letters = [p.pooled for p in pieces for _ in p.text]
        pooled += [any(letters[start:end]) for start, end in encoding.offsets]

    def shortened(self, spec: InputSpec, text: str) -> str:
        """The text within its limit; marked instructions inside it are kept whole and not counted."""
        left = spec.text_tokens
        if len(text) <= left and text.isascii():
            return text  # a token has at least one letter
        kept = []
        for at, stretch in enumerate(marked_stretches(spec, text)):
            if at % 2 == 0 and stretch:
                offsets = self._tokenizer.encode(stretch, add_special_tokens=False).offsets
                if len(offsets) > left:
                    stretch = stretch[: offsets[left][0]]
                left = max(0, left - len(offsets))
            kept.append(stretch)
        return "".join(kept)


@lru_cache(maxsize=8)
def _tokenizer(file: Path, added: tuple[str, ...]) -> Any:
    from tokenizers import AddedToken, Tokenizer

    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        for token in saved["added_tokens"]:
            token["special"] = token["special"] or token["content"] in added
        tokenizer = Tokenizer.from_str(json.dumps(saved))
    except Exception as error:  # tokenizers raises bare Exceptions
        reason = str(error).partition("\n")[0]
        raise CheckpointMissing(f"{file} is no saved tokenizer: {reason}") from error
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in added])
    tokenizer.encode_special_tokens = True  # read no special token in plain text
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
