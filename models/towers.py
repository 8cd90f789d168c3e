"""CLIP and SigLIP through transformers: a text and a picture tower, fused by score.

    harness eval -m clip-l -s demo
    harness eval -m siglip --model-arg path=google/siglip2-so400m-patch14-384 -s demo

Several parts are the normalised sum of unit vectors, as in `clip`; a clip is the mean of its frames'.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.compat import allow_torchvision
from harness.content import Image, Item
from harness.errors import CheckpointMissing, HarnessError
from harness.media import Size, by_shorter_side
from harness.model import ModelSpec, library_versions, options

from .checkpoint import TOKENIZER, Checkpoint, quietly
from .fusion import ALL_MODALITIES, Layout, frames_asked, fuse, stacked, summed_cost, take_apart
from .text_encoder import checked_dtype
from .tiny_towers import write_tiny_clip, write_tiny_siglip

if TYPE_CHECKING:
    import PIL.Image
    from torch import Tensor

Ids = npt.NDArray[np.int64]

_BICUBIC = 3
"""PIL's number for it."""
_PATCH = {"clip": 32, "siglip": 16}
_TOKENS = {"clip": 77, "siglip": 64}
"""What transformers takes where config.json says nothing."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """A folder's tokenizer and picture processor; `padded`: every text to the limit, as SigLIP is trained."""

    folder: Path
    max_tokens: int
    padded: bool = False

    def tokens(self, texts: Sequence[str]) -> dict[str, Any]:
        """`ids` and `mask` [T, L], and which texts were `cut` to the limit, [T]."""
        tokenizer = tokenizer_at(self.folder)
        kept = tokenizer(
            list(texts),
            padding="max_length" if self.padded else "longest",
            truncation=True,
            max_length=self.max_tokens,
            return_attention_mask=True,
            return_tensors="np",
        )
        cut = [length > self.max_tokens for length in self._lengths(texts)]
        return {
            "ids": kept["input_ids"].astype(np.int64),
            "mask": kept["attention_mask"].astype(np.int64),
            "cut": cut,
        }

    def count(self, text: str) -> int:
        """The tokens that a text costs."""
        return self.max_tokens if self.padded else min(self.max_tokens, *self._lengths([text]))

    def see(self, picture: PIL.Image.Image) -> npt.NDArray[np.float32]:
        """[3, height, width]"""
        pixels = _processor_at(self.folder)(images=picture, return_tensors="np")["pixel_values"]
        return np.asarray(pixels[0], np.float32)

    def seen_at(self, size: Size) -> Size | None:
        """What the processor resizes a picture of this size to."""
        processor = _processor_at(self.folder)
        side = processor.size
        if not processor.do_resize or processor.resample != _BICUBIC:
            return None
        if side.shortest_edge:
            return by_shorter_side(size, side.shortest_edge)
        return (side.width, side.height) if side.width and side.height else None

    def _lengths(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in tokenizer_at(self.folder)(list(texts), verbose=False)["input_ids"]]


@lru_cache(maxsize=8)
def tokenizer_at(folder: Path) -> Any:
    """transformers' tokenizer of a folder. Raises CheckpointMissing, HarnessError."""
    allow_torchvision()
    from transformers import AutoTokenizer

    if (folder / "spiece.model").is_file() and importlib.util.find_spec("sentencepiece") is None:
        raise HarnessError(f"the tokenizer in {folder} needs sentencepiece: pip install 'umr-harness[clip]'")
    return _made(AutoTokenizer, folder, "tokenizer")


@lru_cache(maxsize=8)
def _processor_at(folder: Path) -> Any:
    """PIL's resizing: what the published numbers were made with."""
    allow_torchvision()
    from transformers import AutoImageProcessor

    return _made(AutoImageProcessor, folder, "picture processor", backend="pil")


def _made(cls: Any, folder: Path, what: str, **settings: str) -> Any:
    try:
        with quietly():
            return cls.from_pretrained(folder, local_files_only=True, **settings)
    except Exception as error:  # the library raises whatever the file leads to
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointMissing(f"{folder} holds no {what} that transformers can make: {reason}") from error


@dataclass(frozen=True, slots=True)
class TowersFrontend:
    checkpoint: Checkpoint
    inputs: Inputs
    patches: int
    dtype: str
    video_frames: int

    @property
    def identity(self) -> Mapping[str, str]:
        return {
            "version": "1",
            "architecture": self.checkpoint.architecture,
            "weights": self.checkpoint.fingerprint,
            "prompt": "bare text",
            "max_tokens": str(self.inputs.max_tokens),
            "fusion": "sum of unit vectors",
            "dtype": self.dtype,
            "video_frames": str(self.video_frames),
            **library_versions("torch", "transformers", "tokenizers", "sentencepiece", "pillow"),
        }

    @property
    def modalities(self) -> frozenset[str]:
        return ALL_MODALITIES

    @property
    def reads_instructions(self) -> bool:
        return False

    def cost(self, item: Item) -> int:
        return summed_cost(item, self.inputs.count, self.patches, video_frames=self.video_frames)

    def prepare(self, items: Sequence[Item]) -> dict[str, Any]:
        parts = take_apart(items, self.inputs.see, video_frames=self.video_frames)
        none: dict[str, Any] = {"ids": np.zeros(0, np.int64), "cut": []}
        texts = self.inputs.tokens(parts.texts) if parts.texts else none
        return {
            "ids": texts["ids"],
            "pictures": stacked(parts.pictures),
            "layout": parts.layout,
            "cut": parts.layout.of_items(texts["cut"], len(items)),
        }

    def seen_at(self, image: Image, size: Size) -> Size | None:
        return self.inputs.seen_at(size)

    def load(self, device: str) -> TowersEmbedder:
        return TowersEmbedder(Towers(self.checkpoint, self.dtype, device))


class Towers:
    """The loaded weights: rows as the projections leave them, not of unit length."""

    def __init__(self, checkpoint: Checkpoint, dtype: str, device: str) -> None:
        self.model = checkpoint.load(dtype).to(device)
        self.device = device

    def texts(self, ids: Ids) -> Tensor:
        """[T, D] float32. Without a mask: CLIP looks back only, SigLIP is trained to see its padding."""
        import torch

        with torch.inference_mode():
            rows = self.model.get_text_features(
                input_ids=torch.from_numpy(ids).to(self.device, non_blocking=True)
            )
        return rows.pooler_output.float()  # type: ignore[no-any-return]

    def pictures(self, pixels: npt.NDArray[np.float32]) -> Tensor:
        """[P, D] float32 from [P, 3, height, width]."""
        import torch

        values = torch.from_numpy(pixels).to(self.device, self.model.dtype, non_blocking=True)
        with torch.inference_mode():
            rows = self.model.get_image_features(pixel_values=values)
        return rows.pooler_output.float()  # type: ignore[no-any-return]


class TowersEmbedder:
    def __init__(self, towers: Towers) -> None:
        self.towers = towers

    def embed(self, batch: dict[str, Any]) -> Tensor:
        """[B, D] float32 unit rows."""
        layout: Layout = batch["layout"]
        rows = []
        if len(batch["ids"]):
            rows.append(self.towers.texts(batch["ids"]))
        if len(batch["pictures"]):
            rows.append(self.towers.pictures(batch["pictures"]))
        return fuse(rows, layout)


def inputs_of(checkpoint: Checkpoint, architecture: str) -> tuple[Inputs, int]:
    """What a CLIP or SigLIP takes, and how many patches a picture has. Raises CheckpointMissing."""
    config = checkpoint.config()
    checkpoint.file("preprocessor_config.json")
    text, vision = config.get("text_config") or {}, config.get("vision_config") or {}
    limit = int(text.get("max_position_embeddings", _TOKENS[architecture]))
    side = int(vision.get("image_size", 224)) // int(vision.get("patch_size", _PATCH[architecture]))
    return Inputs(checkpoint.small_files(), limit, padded=architecture == "siglip"), side * side


def _open(name: str, repo: str, architecture: str, given: Mapping[str, str]) -> TowersFrontend:
    given = {key.replace("_", "-"): value for key, value in given.items()}
    defaults = {"path": repo, "revision": "main", "dtype": "float32", "video-frames": "8"}
    chosen = options(name, given, defaults)
    dtype = checked_dtype(name, chosen["dtype"])
    frames = frames_asked(name, chosen["video-frames"])
    checkpoint = Checkpoint.at(
        chosen["path"], chosen["revision"], architecture=architecture, beside=TOKENIZER
    )
    return TowersFrontend(checkpoint, *inputs_of(checkpoint, architecture), dtype, frames)


def _model(
    name: str, title: str, repo: str, architecture: str, *, image: str, text: str, **more: Any
) -> ModelSpec:
    """`repo` on the hub by default, else `--model-arg path=…`; `image` and `text`: as what it takes them."""
    return ModelSpec(
        name=name,
        title=title,
        open=partial(_open, name, repo, architecture),
        source=f"https://huggingface.co/{repo}",
        input_spec={
            "image": image,
            "text": text,
            "video": "8 frames (option video-frames)",
            "several parts": "sum of unit vectors",
            "instructions": "not read",
        },
        **more,
    )


CLIP_L = _model(
    "clip-l",
    "CLIP ViT-L/14 (OpenAI), score fusion",
    "openai/clip-vit-large-patch14",
    "clip",
    tiny=write_tiny_clip,
    licence="MIT",
    paper_ref="arXiv 2103.00020",
    trained_on={"WebImageText": "arXiv 2103.00020, section 2.2: 400 million pairs, not published"},
    image="shorter side 224 px, centre crop",
    text="77 tokens",
)

SIGLIP = _model(
    "siglip",
    "SigLIP So400m/14, 384 px, score fusion",
    "google/siglip-so400m-patch14-384",
    "siglip",
    tiny=write_tiny_siglip,
    licence="Apache-2.0",
    paper_ref="arXiv 2303.15343",
    trained_on={"WebLI": "model card of google/siglip-so400m-patch14-384; not published"},
    image="384 x 384 px, not cropped",
    text="64 tokens, always padded to them",
)
