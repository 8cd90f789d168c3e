"""CLIP and its kin through open_clip: contrastive text and picture towers, fused by score.

Several parts are the normalised sum of unit vectors, score fusion (Wei et al. 2023, arXiv
2311.17136); a clip is the mean of its frames. Pictures go through open_clip's own transform.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.compat import allow_torchvision
from harness.content import Image, Item
from harness.digest import digest, file_digest
from harness.errors import CheckpointMissing, HarnessError, UnknownName
from harness.media import Size, by_shorter_side
from harness.model import ModelSpec, library_versions, options

from .checkpoint import find, unreachable
from .fusion import ALL_MODALITIES, Layout, frames_asked, fuse, stacked, summed_cost, take_apart
from .onednn import quicken
from .text_encoder import checked_dtype

if TYPE_CHECKING:
    import PIL.Image
    from torch import Tensor

OPTIONS = {
    "name": "ViT-B-32",
    "pretrained": "laion2b_s34b_b79k",
    "revision": "main",
    "dtype": "float32",
    "video-frames": "8",
}
PRECISION = {"float32": "fp32", "bfloat16": "pure_bf16", "float16": "pure_fp16"}
CONFIG = "open_clip_config.json"
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


@dataclass(frozen=True, slots=True)
class Weights:
    """Where weights come from: a local file or folder, or a commit of a hub repository."""

    fingerprint: str
    path: Path | None = None
    repo: str = ""
    filename: str | None = None
    commit: str = ""

    def fetch(self) -> Path:
        """The local file or folder, downloaded where need be; raises CheckpointMissing."""
        if self.path is not None:
            return self.path
        _open_clip()
        from open_clip.pretrained import download_pretrained_from_hf

        try:
            return Path(download_pretrained_from_hf(self.repo, self.filename, self.commit))
        except OSError as error:
            raise unreachable(self.repo, error, "pretrained") from error


@dataclass(frozen=True, slots=True)
class ClipFrontend:
    architecture: str
    """As open_clip names it: a built-in configuration, or local-dir:FOLDER."""
    weights: Weights
    picture: str
    """JSON of open_clip's PreprocessCfg, as far as it is not the default."""
    quick_gelu: bool
    """As the weights were trained: open_clip only warns where "ViT-B-32" gets OpenAI's weights."""
    patches: int
    context: int
    dtype: str
    video_frames: int

    @property
    def identity(self) -> Mapping[str, str]:
        local = self.architecture.startswith("local-dir:")
        return {
            "version": "1",
            "architecture": "in the weights' folder" if local else self.architecture,
            "weights": self.weights.fingerprint,
            "picture": self.picture,
            "quick_gelu": str(self.quick_gelu),
            "prompt": "bare text",
            "dtype": self.dtype,
            "video_frames": str(self.video_frames),
            **library_versions("open-clip-torch", "torch", "torchvision", "timm", "pillow"),
        }

    @property
    def modalities(self) -> frozenset[str]:
        return ALL_MODALITIES

    @property
    def reads_instructions(self) -> bool:
        return False

    def cost(self, item: Item) -> int:
        padded = self.context  # open_clip pads every text to it
        return summed_cost(item, lambda _: padded, self.patches, video_frames=self.video_frames)

    def prepare(self, items: Sequence[Item]) -> dict[str, Any]:
        transform = _transform(self.picture)

        def see(picture: PIL.Image.Image) -> npt.NDArray[np.float32]:
            values: npt.NDArray[np.float32] = transform(picture).numpy()
            return values

        parts = take_apart(items, see, video_frames=self.video_frames)
        tokens = _tokenizer(self.architecture)(parts.texts).numpy() if parts.texts else np.zeros(0, np.int64)
        return {"tokens": tokens, "pictures": stacked(parts.pictures), "layout": parts.layout}

    def seen_at(self, image: Image, size: Size) -> Size | None:
        made = json.loads(self.picture)
        if made.get("interpolation", "bicubic") != "bicubic":
            return None
        side, mode = made["size"], made.get("resize_mode", "shortest")
        if mode == "squash":
            return side, side
        return by_shorter_side(size, side) if mode == "shortest" else None

    def load(self, device: str) -> ClipEmbedder:
        return ClipEmbedder(self, device)


class ClipEmbedder:
    def __init__(self, frontend: ClipFrontend, device: str) -> None:
        open_clip = _open_clip()
        import torch

        self.device = device
        self.dtype = getattr(torch, frontend.dtype)
        weights = frontend.weights.fetch()
        try:
            self.model = open_clip.create_model(
                frontend.architecture,
                pretrained=str(weights) if weights.is_file() else None,
                precision=PRECISION[frontend.dtype],
                device=device,
                force_quick_gelu=frontend.quick_gelu,
                require_pretrained=True,
                weights_only=True,
            ).eval()
        except HarnessError:
            raise
        except Exception as error:  # unpickling a file of some other kind raises anything
            reason = str(error).partition("\n")[0]
            raise CheckpointMissing(
                f"{weights} does not hold weights of {frontend.architecture}: {reason}"
            ) from error
        quicken(self.model)

    def embed(self, batch: dict[str, Any]) -> Tensor:
        """[B, D] float32 unit rows."""
        import torch

        layout: Layout = batch["layout"]
        rows = []
        with torch.inference_mode():
            if len(batch["tokens"]):
                rows.append(
                    self.model.encode_text(
                        torch.from_numpy(batch["tokens"]).to(self.device, non_blocking=True)
                    )
                )
            if len(batch["pictures"]):
                pictures = torch.from_numpy(batch["pictures"]).to(self.device, self.dtype, non_blocking=True)
                rows.append(self.model.encode_image(pictures))
        return fuse(rows, layout)


def _open_clip() -> Any:
    allow_torchvision()
    import open_clip

    return open_clip


@lru_cache(maxsize=8)
def _transform(picture: str) -> Any:
    _open_clip()
    from open_clip.transform import PreprocessCfg, image_transform_v2

    return image_transform_v2(PreprocessCfg(**json.loads(picture)), is_train=False)


@lru_cache(maxsize=8)
def _tokenizer(architecture: str) -> Any:
    return _open_clip().get_tokenizer(architecture)


def _open(given: Mapping[str, str]) -> ClipFrontend:
    chosen = options("clip", given, OPTIONS)
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise HarnessError("clip needs open_clip: pip install 'umr-harness[clip]'")
    place = Path(chosen["pretrained"])
    architecture, trained_with = chosen["name"], {}
    if place.is_dir():
        architecture = f"local-dir:{place}"
        saved = _json(place / CONFIG)
        config, trained_with = saved["model_cfg"], saved.get("preprocess_cfg", {})
        weights = Weights(_folder_digest(place), place)
    else:
        config = _built_in(Path(spec.origin).parent / "model_configs", architecture)
        if place.is_file():
            weights = Weights(file_digest(place), place)
        elif place.suffix in SUFFIXES or len(place.parts) > 1:
            raise CheckpointMissing(f"the weights of clip are not at {place}: give a file, a folder or a tag")
        else:
            weights, trained_with = _tagged(architecture, chosen["pretrained"], chosen["revision"])
    vision = config["vision_cfg"]
    size = int(vision.get("image_size", 224))
    return ClipFrontend(
        architecture=architecture,
        weights=weights,
        picture=_picture_spec({**trained_with, "size": size}),
        quick_gelu=bool(config.get("quick_gelu") or trained_with.get("quick_gelu")),
        patches=(size // int(vision.get("patch_size", 16))) ** 2,
        context=int(config["text_cfg"].get("context_length", 77)),
        dtype=checked_dtype("clip", chosen["dtype"]),
        video_frames=frames_asked("clip", chosen["video-frames"]),
    )


def _built_in(configs: Path, name: str) -> dict[str, Any]:
    file = configs / f"{name}.json"
    if not file.is_file():
        raise UnknownName("open_clip model", name, [f.stem for f in configs.glob("*.json")])
    return _json(file)


def _json(file: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointMissing(f"{file} is no open_clip configuration: {error}") from error
    return values


def _folder_digest(folder: Path) -> str:
    files = sorted(f for f in folder.iterdir() if f.suffix in (*SUFFIXES, ".json", ".txt", ".model"))
    if not any(f.suffix in SUFFIXES for f in files):
        raise CheckpointMissing(f"{folder} holds no weights: one of {', '.join(SUFFIXES)} is needed")
    return digest({f.name: file_digest(f) for f in files}, length=32)


def _picture_spec(settings: Mapping[str, Any]) -> str:
    keys = ("size", "mean", "std", "interpolation", "resize_mode", "fill_color")
    return json.dumps({key: settings[key] for key in keys if settings.get(key) is not None})


def _tagged(name: str, tag: str, revision: str) -> tuple[Weights, dict[str, Any]]:
    """A published tag's weights, pinned to a commit, and how open_clip says they were trained."""
    open_clip = _open_clip()
    settings: dict[str, Any] = open_clip.get_pretrained_cfg(name, tag)
    if not settings:
        known = open_clip.list_pretrained_tags_by_model(name)
        raise UnknownName(f"pretrained tag of open_clip model {name!r}", tag, known)
    repo, _, filename = settings["hf_hub"].rpartition("/")
    commit = find(repo, revision, "pretrained").commit
    weights = Weights(f"{repo}@{commit}", repo=repo, filename=filename or None, commit=commit)
    return weights, settings


def _tiny(folder: Path) -> Mapping[str, str]:
    open_clip = _open_clip()
    import torch
    from safetensors.torch import save_file

    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**config)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / CONFIG).write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return {"pretrained": str(folder)}


CLIP = ModelSpec(
    name="clip",
    title="CLIP ViT-B/32 (LAION-2B), score fusion",
    open=_open,
    tiny=_tiny,
    source="https://github.com/mlfoundations/open_clip",
    licence="MIT",
    paper_ref="arXiv 2103.00020, 2212.07143",
    trained_on={"LAION-2B": "model card of laion/CLIP-ViT-B-32-laion2B-s34B-b79K (the default weights)"},
    input_spec={
        "image": "open_clip's transform of the weights (ViT-B-32: shorter side 224 px, centre crop)",
        "text": "77 tokens",
        "video": "8 frames (option video-frames)",
        "several parts": "sum of unit vectors",
        "instructions": "not read",
    },
)
