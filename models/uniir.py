"""UniIR's two released retrievers: CLIP_SF adds the vectors of text and picture, BLIP_FF mixes their tokens.

    python -m harness.models.uniir_convert clip_sf_large.pth ./clip-sf
    harness eval -m uniir-clip-sf --model-arg path=./clip-sf -s mbeir-local

As TIGER-AI-Lab/UniIR computes (Wei et al. 2023, arXiv 2311.17136): an item is one text, its instruction
in front, and one picture. What UniIR does not know is our choice: several texts are one, with blanks
between; of several pictures and of a clip's frames CLIP_SF takes the mean, BLIP_FF looks at all tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from harness.compat import allow_torchvision
from harness.content import Image, Item, Text
from harness.errors import CheckpointMissing
from harness.media import Size, frames, open_picture
from harness.model import ModelSpec, library_versions, options

from .checkpoint import CONFIG, TOKENIZER, Checkpoint
from .fusion import ALL_MODALITIES, frames_asked, stacked, summed_cost
from .text_encoder import checked_dtype
from .tiny_towers import (
    LETTERS,
    SIDE,
    SIZES,
    lively,
    write_bert_tokenizer,
    write_picture_settings,
    write_tiny_clip,
)
from .towers import Inputs, Towers
from .training_data import BLIP_LARGE, MBEIR, UNIIR_HELD_OUT

if TYPE_CHECKING:
    from torch import Tensor

Fusion = Literal["score", "feature"]

KEY = "uniir_fusion"
"""Of config.json: which of the two the converter made."""
ARCHITECTURE: Mapping[Fusion, str] = {"score": "clip", "feature": "blip"}
RELEASED: Mapping[Fusion, str] = {
    "score": "CLIP_SF/clip_sf_large.pth",
    "feature": "BLIP_FF/blip_ff_large.pth",
}
TOKENS: Mapping[Fusion, int] = {"score": 77, "feature": 100}
"""To how many a text is cut."""
_SOURCE = "https://huggingface.co/TIGER-Lab/UniIR"


@dataclass(frozen=True, slots=True)
class UniirFrontend:
    fusion: Fusion
    checkpoint: Checkpoint
    inputs: Inputs
    side: int
    """Of a picture, in pixels."""
    picture_tokens: int
    dtype: str
    video_frames: int

    @property
    def identity(self) -> Mapping[str, str]:
        return {
            "version": "1",
            "weights": self.checkpoint.fingerprint,
            "fusion": self.fusion,
            "prompt": "instruction, then text",
            "max_tokens": str(self.inputs.max_tokens),
            "dtype": self.dtype,
            "video_frames": str(self.video_frames),
            **library_versions("torch", "transformers", "tokenizers", "pillow"),
        }

    @property
    def modalities(self) -> frozenset[str]:
        return ALL_MODALITIES

    @property
    def reads_instructions(self) -> bool:
        return True

    def cost(self, item: Item) -> int:
        pictures = summed_cost(item, lambda _: 0, 1, video_frames=self.video_frames)
        words = sentence(item)
        if self.fusion == "feature":  # an empty text and a black picture are looked at, too
            return self.inputs.count(words) + self.picture_tokens * max(1, pictures)
        text = self.inputs.count(words) if words or not pictures else 0
        return text + self.picture_tokens * pictures

    def prepare(self, items: Sequence[Item]) -> dict[str, Any]:
        """Of every item its text's `ids` and `mask` [B, L], and whether it counts, `said` [B]; all
        `pictures` [P, 3, side, side], and whose they are, `item_of_picture` [P]."""
        texts = [sentence(item) for item in items]
        pictures: list[npt.NDArray[np.float32]] = []
        item_of_picture: list[int] = []
        for at, item in enumerate(items):
            for part in item.parts:
                if isinstance(part, Text):
                    continue
                seen = (
                    [open_picture(part)] if isinstance(part, Image) else frames(part, count=self.video_frames)
                )
                pictures += map(self.inputs.see, seen)
                item_of_picture += [at] * len(seen)
        shown = set(item_of_picture)
        return {
            **self.inputs.tokens(texts),
            "said": np.array([bool(text) or at not in shown for at, text in enumerate(texts)]),
            "pictures": stacked(pictures),
            "item_of_picture": np.array(item_of_picture, np.int64),
        }

    def seen_at(self, image: Image, size: Size) -> Size | None:
        return self.inputs.seen_at(size)

    def load(self, device: str) -> ScoreFusion | FeatureFusion:
        if self.fusion == "score":
            return ScoreFusion(Towers(self.checkpoint, self.dtype, device))
        return FeatureFusion(self.checkpoint, self.side, self.dtype, device)


def sentence(item: Item) -> str:
    """The one text of an item, its instruction in front; empty where it says nothing."""
    words = " ".join(part.text for part in item.parts if isinstance(part, Text) and part.text)
    if not item.instruction:
        return words
    return f"{item.instruction}{item.separator}{words}" if words else item.instruction


class ScoreFusion:
    """The vectors of text and picture, added as they are; a missing one adds nothing."""

    def __init__(self, towers: Towers) -> None:
        self.towers = towers

    def embed(self, batch: dict[str, Any]) -> Tensor:
        """[B, D] float32 unit rows."""
        import torch
        from torch.nn.functional import normalize

        said = torch.from_numpy(batch["said"])
        rows: list[Tensor] = []
        owners: list[Tensor] = []
        if said.any():
            rows.append(self.towers.texts(batch["ids"][batch["said"]]).cpu())
            owners.append(said.nonzero()[:, 0])
        if len(batch["pictures"]):
            owner = torch.from_numpy(batch["item_of_picture"])
            share = 1 / torch.bincount(owner, minlength=len(said))[owner]
            rows.append(self.towers.pictures(batch["pictures"]).cpu() * share[:, None])
            owners.append(owner)
        every = torch.cat(rows)
        sums = torch.zeros(len(said), every.shape[1])
        return normalize(sums.index_add_(0, torch.cat(owners), every), dim=-1)


class FeatureFusion:
    """BLIP's text encoder, which looks at the picture's tokens; an item without a picture has a black one,
    looked at like any other, and its text begins with [CLS], not [ENC], as UniIR is trained."""

    def __init__(self, checkpoint: Checkpoint, side: int, dtype: str, device: str) -> None:
        import torch

        self.device = device
        self.dtype = getattr(torch, dtype)
        self.side = side
        self.vision, self.text = (tower.to(device) for tower in _loaded(checkpoint, dtype))

    def embed(self, batch: dict[str, Any]) -> Tensor:
        """[B, D] float32 unit rows: the pooled first state."""
        import torch
        from torch.nn.functional import normalize

        owner = batch["item_of_picture"]
        shown = [np.flatnonzero(owner == i) + 1 for i in range(len(batch["ids"]))]
        places = [place if len(place) else np.zeros(1, np.int64) for place in shown]
        counts = np.array([len(place) for place in places])
        ids, mask = (
            torch.from_numpy(batch[key]).to(self.device, non_blocking=True) for key in ("ids", "mask")
        )
        rows = torch.zeros(len(places), self.text.config.hidden_size)
        with torch.inference_mode():
            seen = self._seen(batch["pictures"])
            # transformers' BLIP drops the mask of what is looked at: nothing may be padded there
            for count in np.unique(counts):
                alike = torch.from_numpy(np.flatnonzero(counts == count))
                states = seen[np.stack([places[i] for i in alike.tolist()])].flatten(1, 2)
                here = alike.to(self.device)
                out = self.text(input_ids=ids[here], attention_mask=mask[here], encoder_hidden_states=states)
                rows[alike] = out.pooler_output.float().cpu()
        return normalize(rows, dim=-1)

    def _seen(self, pixels: npt.NDArray[np.float32]) -> Tensor:
        """[1 + P, tokens, D]: those of a black picture, then of the pictures."""
        import torch

        black = torch.zeros(1, 3, self.side, self.side)
        values = torch.cat([black, torch.from_numpy(pixels)]) if len(pixels) else black
        states: Tensor = self.vision(pixel_values=values.to(self.device, self.dtype)).last_hidden_state
        return states


def blip_towers(config: Mapping[str, Any]) -> dict[str, Any]:
    """transformers' BlipVisionModel and BlipTextModel by the beginning of their weights' names."""
    allow_torchvision()
    import transformers

    both: Any = transformers.BlipConfig(
        text_config=config["text_config"], vision_config=config["vision_config"]
    )
    return {
        "vision_model.": transformers.BlipVisionModel(both.vision_config),
        "text_model.": transformers.BlipTextModel(both.text_config),
    }


def _loaded(checkpoint: Checkpoint, dtype: str) -> list[Any]:
    """The two with the checkpoint's weights, on the CPU. Raises CheckpointMissing."""
    import torch

    tensors = checkpoint.tensors()
    towers = blip_towers(checkpoint.config())
    for prefix, tower in towers.items():
        own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        for name, weight in tower.state_dict().items():
            if name not in own or own[name].shape != weight.shape:
                found = f"of shape {list(own[name].shape)}" if name in own else "missing"
                raise CheckpointMissing(
                    f"{checkpoint.whole} does not hold weights of BLIP: {prefix}{name} is {found}"
                )
        tower.load_state_dict(own, strict=False, assign=True)
        tower.to(getattr(torch, dtype)).eval().requires_grad_(False)
    return list(towers.values())


def _open(name: str, fusion: Fusion, given: Mapping[str, str]) -> UniirFrontend:
    given = {key.replace("_", "-"): value for key, value in given.items()}
    defaults = {"path": "", "revision": "main", "dtype": "float32", "video-frames": "8"}
    chosen = options(name, given, defaults)
    dtype = checked_dtype(name, chosen["dtype"])
    video_frames = frames_asked(name, chosen["video-frames"])
    convert = f"python -m harness.models.uniir_convert {Path(RELEASED[fusion]).name} FOLDER"
    if not chosen["path"]:
        raise CheckpointMissing(
            f"{name} needs a converted checkpoint: get checkpoint/{RELEASED[fusion]} from {_SOURCE}, run"
            f" '{convert}' and give --model-arg path=FOLDER"
        )
    if Path(chosen["path"]).is_file():
        raise CheckpointMissing(f"{chosen['path']} is a file: run '{convert}' and give its folder")
    architecture = ARCHITECTURE[fusion]
    checkpoint = Checkpoint.at(
        chosen["path"], chosen["revision"], architecture=architecture, beside=TOKENIZER
    )
    config = checkpoint.config()
    if config.get(KEY) != fusion:
        raise CheckpointMissing(
            f"{checkpoint.whole} holds a {architecture} that UniIR did not train with {fusion} fusion"
            f" ({KEY} of config.json is {config.get(KEY)!r}): make it with '{convert}'"
        )
    checkpoint.file("preprocessor_config.json")
    saved = (checkpoint.json("tokenizer_config.json") or {}).get("model_max_length", TOKENS[fusion])
    limit = min(int(saved), int(config["text_config"]["max_position_embeddings"]))
    side, patch = (config["vision_config"][key] for key in ("image_size", "patch_size"))
    return UniirFrontend(
        fusion=fusion,
        checkpoint=checkpoint,
        inputs=Inputs(checkpoint.small_files(), limit),
        side=side,
        picture_tokens=(side // patch) ** 2 + 1,
        dtype=dtype,
        video_frames=video_frames,
    )


def _tiny_score(folder: Path) -> Mapping[str, str]:
    given = write_tiny_clip(folder)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, KEY: "score"}))
    return given


def _tiny_feature(folder: Path) -> Mapping[str, str]:
    from safetensors.torch import save_file

    text = {**SIZES, "vocab_size": write_bert_tokenizer(folder), "max_position_embeddings": LETTERS}
    vision = {**SIZES, "image_size": SIDE, "patch_size": 8}
    config = {"model_type": ARCHITECTURE["feature"], "text_config": text, "vision_config": vision}
    towers = lively(lambda: blip_towers(config))
    tensors = {prefix + name: t for prefix, tower in towers.items() for name, t in tower.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / CONFIG).write_text(json.dumps({**config, KEY: "feature"}))
    write_picture_settings(folder, "BlipImageProcessor", {"size": {"height": SIDE, "width": SIDE}})
    return {"path": str(folder)}


UNIIR_CLIP_SF = ModelSpec(
    name="uniir-clip-sf",
    title="UniIR CLIP_SF, ViT-L/14",
    open=partial(_open, "uniir-clip-sf", "score"),
    tiny=_tiny_score,
    source=_SOURCE,
    licence="MIT",
    paper_ref="arXiv 2311.17136",
    trained_on=MBEIR,
    held_out=UNIIR_HELD_OUT,
    input_spec={
        "image": "shorter side 224 px, centre crop",
        "text": f"instruction, then text: {TOKENS['score']} tokens",
        "video": "8 frames (option video-frames), the mean of their vectors",
        "several parts": "one text; sum of text and picture vector, not of unit length",
        "instructions": "in front of the text",
    },
)

UNIIR_BLIP_FF = ModelSpec(
    name="uniir-blip-ff",
    title="UniIR BLIP_FF, ViT-L/16",
    open=partial(_open, "uniir-blip-ff", "feature"),
    tiny=_tiny_feature,
    source=_SOURCE,
    licence="MIT",
    paper_ref="arXiv 2311.17136",
    trained_on={**BLIP_LARGE, **MBEIR},
    held_out={name: why for name, why in UNIIR_HELD_OUT.items() if name not in BLIP_LARGE},
    input_spec={
        "image": "224 x 224 px, not cropped; black where there is none",
        "text": f"instruction, then text: {TOKENS['feature']} tokens",
        "video": "8 frames (option video-frames), all their tokens",
        "several parts": "one text that looks at the tokens of all pictures",
        "instructions": "in front of the text",
    },
)
