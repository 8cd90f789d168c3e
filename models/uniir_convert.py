"""UniIR's released files (.pth) as checkpoints of transformers: weights renamed, nothing of a pickle run.

    python -m harness.models.uniir_convert clip_sf_large.pth ./clip-sf
    python -m harness.models.uniir_convert blip_ff_large.pth ./blip-ff --tokenizer ./bert-base-uncased

A file holds the weights under "model", and beside them what training left: the optimiser's state and a
configuration object. `torch.load(weights_only=True)` refuses the classes of such objects, so an empty one
is made wherever the file names a class. Momentum encoders and queues are left out.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.compat import allow_torchvision
from harness.errors import CheckpointMissing, HarnessError

from .checkpoint import CONFIG, TOKENIZER, find, quietly
from .tiny_towers import write_picture_settings
from .towers import tokenizer_at
from .uniir import ARCHITECTURE, KEY, TOKENS, Fusion, blip_towers

Tensors = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

_HEAD = 64
"""The width of an attention head in every CLIP and BLIP."""
_MEAN_AND_STD = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


@dataclass(frozen=True, slots=True)
class Form:
    """One of the two released models: what tells it, its names in transformers, what it is made of."""

    name: str
    fusion: Fusion
    beginnings: tuple[str, ...]
    names: tuple[tuple[str, str], ...]
    """Pieces of UniIR's names and of transformers', exchanged in this order."""
    left_out: str
    """Pattern of what only training needs."""
    config: Callable[[Shapes], dict[str, Any]]
    picture: Callable[[int], dict[str, Any]]
    """The picture processor's settings for pictures of this side."""
    processor: str
    tokenizer: str


def _depth(shapes: Shapes, pattern: str) -> int:
    found = [int(match[1]) for name in shapes if (match := re.match(pattern, name))]
    return max(found, default=-1) + 1


def _clip_config(shapes: Shapes) -> dict[str, Any]:
    width, _, patch, _ = shapes["vision_model.embeddings.patch_embedding.weight"]
    tokens, text_width = shapes["text_model.embeddings.token_embedding.weight"]
    return {
        "projection_dim": shapes["text_projection.weight"][0],
        "text_config": {
            **_tower(text_width, _depth(shapes, r"text_model\.encoder\.layers\.(\d+)"), 4 * text_width),
            "hidden_act": "quick_gelu",
            "vocab_size": tokens,
            "max_position_embeddings": shapes["text_model.embeddings.position_embedding.weight"][0],
            "bos_token_id": tokens - 2,
            "eos_token_id": tokens - 1,
        },
        "vision_config": {
            **_tower(width, _depth(shapes, r"vision_model\.encoder\.layers\.(\d+)"), 4 * width),
            "hidden_act": "quick_gelu",
            "patch_size": patch,
            "image_size": patch * _side(shapes["vision_model.embeddings.position_embedding.weight"][0]),
        },
    }


def _blip_config(shapes: Shapes) -> dict[str, Any]:
    width, _, patch, _ = shapes["vision_model.embeddings.patch_embedding.weight"]
    tokens, text_width = shapes["text_model.embeddings.word_embeddings.weight"]
    return {
        "text_config": {
            **_tower(text_width, _depth(shapes, r"text_model\.encoder\.layer\.(\d+)"), 4 * text_width),
            "vocab_size": tokens,
            "max_position_embeddings": shapes["text_model.embeddings.position_embeddings.weight"][0],
            "layer_norm_eps": 1e-12,
        },
        "vision_config": {
            **_tower(width, _depth(shapes, r"vision_model\.encoder\.layers\.(\d+)"), 4 * width),
            "patch_size": patch,
            "image_size": patch * _side(shapes["vision_model.embeddings.position_embedding"][1]),
            "layer_norm_eps": 1e-6,
        },
    }


def _tower(width: int, depth: int, inner: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": max(1, width // _HEAD),
        "intermediate_size": inner,
    }


def _side(positions: int) -> int:
    """Patches along a picture's side; the first position is the picture's own token."""
    return math.isqrt(positions - 1)


CLIP_SF = Form(
    name="CLIP_SF",
    fusion="score",
    beginnings=("clip_model.",),
    names=(
        ("clip_model.visual.transformer.resblocks.", "vision_model.encoder.layers."),
        ("clip_model.transformer.resblocks.", "text_model.encoder.layers."),
        ("clip_model.visual.class_embedding", "vision_model.embeddings.class_embedding"),
        ("clip_model.visual.conv1.", "vision_model.embeddings.patch_embedding."),
        ("clip_model.visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
        ("clip_model.visual.ln_pre.", "vision_model.pre_layrnorm."),
        ("clip_model.visual.ln_post.", "vision_model.post_layernorm."),
        ("clip_model.visual.proj", "visual_projection.weight"),
        ("clip_model.token_embedding.", "text_model.embeddings.token_embedding."),
        ("clip_model.positional_embedding", "text_model.embeddings.position_embedding.weight"),
        ("clip_model.ln_final.", "text_model.final_layer_norm."),
        ("clip_model.text_projection", "text_projection.weight"),
        ("clip_model.logit_scale", "logit_scale"),
        (".ln_1.", ".layer_norm1."),
        (".ln_2.", ".layer_norm2."),
        (".attn.", ".self_attn."),
        (".mlp.c_fc.", ".mlp.fc1."),
        (".mlp.c_proj.", ".mlp.fc2."),
    ),
    left_out="(?!)",
    config=_clip_config,
    picture=lambda side: {
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        **_MEAN_AND_STD,
    },
    processor="CLIPImageProcessor",
    tokenizer="openai/clip-vit-large-patch14",
)
BLIP_FF = Form(
    name="BLIP_FF",
    fusion="feature",
    beginnings=("visual_encoder.", "text_encoder."),
    names=(
        ("visual_encoder.blocks.", "vision_model.encoder.layers."),
        ("visual_encoder.cls_token", "vision_model.embeddings.class_embedding"),
        ("visual_encoder.pos_embed", "vision_model.embeddings.position_embedding"),
        ("visual_encoder.patch_embed.proj.", "vision_model.embeddings.patch_embedding."),
        ("visual_encoder.norm.", "vision_model.post_layernorm."),
        ("text_encoder.", "text_model."),
        (".norm1.", ".layer_norm1."),
        (".norm2.", ".layer_norm2."),
        (".attn.qkv.", ".self_attn.qkv."),
        (".attn.proj.", ".self_attn.projection."),
    ),
    left_out=r"(visual|text)_encoder_m\..*|(query|cand|idx|new_ptr)_queue|temp|.*\.position_ids",
    config=_blip_config,
    picture=lambda side: {"size": {"height": side, "width": side}, **_MEAN_AND_STD},
    processor="BlipImageProcessor",
    tokenizer="google-bert/bert-base-uncased",
)


class _Nothing:
    """What is made of a class that a file names: it takes anything and keeps nothing."""

    def __new__(cls, *given: object, **named: object) -> _Nothing:
        return super().__new__(cls)

    def __init__(self, *given: object, **named: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def read_weights(path: Path) -> Tensors:
    """The tensors under "model". Raises CheckpointMissing."""
    import torch
    from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

    if not path.is_file():
        raise CheckpointMissing(f"there is no file {path}: get clip_sf_large.pth or blip_ff_large.pth")
    try:
        named = get_unsafe_globals_in_checkpoint(path)
        with safe_globals([(_Nothing, name) for name in named]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # reading a file of some other kind raises anything
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointMissing(f"{path} cannot be read without running what it holds: {reason}") from error
    weights = content.get("model") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(t, torch.Tensor) for t in weights.values()):
        raise CheckpointMissing(f"{path} holds no weights under 'model', as UniIR's files do")
    return weights


def renamed(weights: Tensors, path: Path) -> tuple[Form, Tensors]:
    """Which of the two models it is, and its weights as transformers names and lays them out.

    Raises CheckpointMissing, naming the weight that belongs to neither.
    """
    for form in (CLIP_SF, BLIP_FF):
        if any(name.startswith(form.beginnings) for name in weights):
            break
    else:
        raise CheckpointMissing(
            f"{path} is neither CLIP_SF nor BLIP_FF: it holds {next(iter(weights), '')!r}"
        )
    found: Tensors = {}
    for old, tensor in weights.items():
        if re.fullmatch(form.left_out, old):
            continue
        if not old.startswith(form.beginnings):
            raise CheckpointMissing(f"{path} is not {form.name}: it holds {old!r}")
        new = old
        for there, here in form.names:
            new = new.replace(there, here)
        if match := re.fullmatch(r"(.*\.self_attn\.)in_proj_(weight|bias)", new):
            for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                found[f"{match[1]}{letter}_proj.{match[2]}"] = third
        else:  # CLIP multiplies by these two from the right
            found[new] = tensor.T if new in ("visual_projection.weight", "text_projection.weight") else tensor
    return form, found


def convert(path: Path, folder: Path, tokenizer: str = "") -> Form:
    """Write the checkpoint that `path` is into `folder`; `tokenizer`: a folder, or a name on the hub.

    Raises CheckpointMissing.
    """
    from safetensors.torch import save_file

    form, tensors = renamed(read_weights(path), path)
    try:
        config = form.config({name: tuple(t.shape) for name, t in tensors.items()})
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointMissing(f"{path} is not {form.name}: it lacks {error.args[0]!r}") from error
    config = {"model_type": ARCHITECTURE[form.fusion], **config, KEY: form.fusion}
    _require_fit(form, config, tensors, path)
    words = _tokenizer(form, tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    words.model_max_length = TOKENS[form.fusion]
    words.save_pretrained(folder)
    side = config["vision_config"]["image_size"]
    write_picture_settings(folder, form.processor, form.picture(side))
    save_file(
        {name: t.float().contiguous() for name, t in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    (folder / CONFIG).write_text(json.dumps(config, indent=2))
    return form


def _require_fit(form: Form, config: Mapping[str, Any], tensors: Tensors, path: Path) -> None:
    """Raises CheckpointMissing for the first weight that the model has not, has otherwise, or lacks."""
    allow_torchvision()
    import torch
    import transformers

    with torch.device("meta"), quietly():
        if form.fusion == "score":
            made = {"": transformers.CLIPModel(transformers.CLIPConfig(**config))}
        else:
            made = blip_towers(config)
    wanted = {f"{start}{name}": t for start, model in made.items() for name, t in model.state_dict().items()}
    for name in sorted(tensors.keys() ^ wanted.keys()):
        what = "holds" if name in tensors else "lacks"
        raise CheckpointMissing(f"{path} is not {form.name}: it {what} {name!r}")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise CheckpointMissing(
                f"{path} is not {form.name}: {name!r} has the shape {list(tensor.shape)},"
                f" not {list(wanted[name].shape)}"
            )


def _tokenizer(form: Form, given: str) -> Any:
    try:
        place = find(given or form.tokenizer, "main", "path")
        files = [place.file(name) for name in ("tokenizer.json", CONFIG, *TOKENIZER)]
        return tokenizer_at(next(file for file in files if file is not None).parent)
    except (CheckpointMissing, StopIteration) as error:
        raise CheckpointMissing(
            f"the files do not hold the tokenizer, and {given or form.tokenizer} does not give it:"
            f" give a folder with that of {form.tokenizer} with --tokenizer FOLDER"
        ) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m harness.models.uniir_convert", description=__doc__)
    parser.add_argument("file", type=Path, help="clip_sf_large.pth or blip_ff_large.pth")
    parser.add_argument("folder", type=Path, help="where the checkpoint goes")
    parser.add_argument("--tokenizer", default="", help="a folder, or a name on the model hub")
    given = parser.parse_args(arguments)
    try:
        form = convert(given.file, given.folder, given.tokenizer)
    except HarnessError as error:
        print(f"uniir_convert: {error}", file=sys.stderr)
        return 2
    print(
        f"{given.folder} holds {form.name}: -m uniir-{form.name.lower().replace('_', '-')}"
        f" --model-arg path={given.folder}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
