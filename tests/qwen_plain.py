"""Qwen-VL with transformers alone: tokenizer, processors and model as their own pages use them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Pil

from harness.compat import allow_torchvision
from harness.content import Video
from harness.media import frames

allow_torchvision()
import transformers  # noqa: E402  (a CPU-only torch needs the line above)

CLASSES = {
    "qwen2_vl": ("Qwen2VLForConditionalGeneration", "Qwen2VLProcessor", "Qwen2VLVideoProcessor"),
    "qwen2_5_vl": ("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor"),
    "qwen3_vl": ("Qwen3VLForConditionalGeneration", "Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
}


def processors(folder: Path, architecture: str) -> tuple[Any, Any]:
    """transformers' image and video processors with the checkpoint's settings."""
    saved = json.loads((folder / "preprocessor_config.json").read_text())
    least, most = saved.pop("min_pixels"), saved.pop("max_pixels")
    saved.pop("image_processor_type")
    size = {"shortest_edge": least, "longest_edge": most}
    clips = getattr(transformers, CLASSES[architecture][2])
    image = transformers.Qwen2VLImageProcessor(size=dict(size), **saved)
    return image, clips(size=dict(size), do_sample_frames=False, cap_pixels_per_frame=False, **saved)


FIRST = {"p": (56, 56), "q": (56, 84)}
"""64x48 and 40x90 to multiples of 28."""


class Plain:
    """transformers alone: tokenizer, processors and model, as their own pages use them."""

    def __init__(self, folder: Path, architecture: str) -> None:
        model, processor, _ = (getattr(transformers, name) for name in CLASSES[architecture])
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(folder / "tokenizer.json"), pad_token="<|endoftext|>"
        )
        tokenizer.add_tokens(["<emb>", "<instruction_start>", "<instruction_end>"])
        image, clips = processors(folder, architecture)
        self.processor = processor(image, tokenizer, clips, chat_template="none")
        self.model = model.from_pretrained(folder, dtype=torch.float32).eval()
        # Qwen3-VL's processor of transformers 4.57 puts times and frames in place of all three tokens
        self.clip = (
            "<|video_pad|>" if architecture == "qwen3_vl" else "<|vision_start|><|video_pad|><|vision_end|>"
        )

    def inputs(
        self,
        text: str,
        pictures: Sequence[Path],
        clips: Sequence[Path],
        first: Mapping[str, tuple[int, int]] = FIRST,
    ) -> Any:
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2.functional import resize

        pixels = [Pil.open(p).convert("RGB").resize(first[p.stem], Pil.Resampling.BICUBIC) for p in pictures]
        seen, metadata = [], []
        for path in clips:
            stills = torch.stack(
                [torch.from_numpy(np.array(f)).permute(2, 0, 1) for f in frames(Video(path, fps=2))]
            )
            seen.append(resize(stills, [280, 392], interpolation=InterpolationMode.BICUBIC, antialias=True))
            metadata.append({"total_num_frames": 12, "fps": 6.0, "frames_indices": [0, 4, 7, 11]})
        more: dict[str, Any] = {"videos": seen, "video_metadata": metadata} if seen else {}
        return self.processor(text=[text], images=pixels or None, return_tensors="pt", **more)

    def states(self, inputs: Any, **how: Any) -> torch.Tensor:
        with torch.inference_mode():
            return self.model.model(**{**inputs, **how}).last_hidden_state[0]


def unstacked(reference: Plain, inputs: Any, *, deepstack: bool = True, **how: Any) -> torch.Tensor:
    """The states; without DeepStack by taking its features from the language model's hands."""
    if deepstack:
        return reference.states(inputs, **how)

    def bare(_: Any, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return arguments, {**named, "deepstack_visual_embeds": None}

    hook = reference.model.model.language_model.register_forward_pre_hook(bare, with_kwargs=True)
    try:
        return reference.states(inputs, **how)
    finally:
        hook.remove()
