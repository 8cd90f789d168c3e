"""The settings that stages have in common, under the names that `--set STAGE.KEY=VALUE` uses."""

from __future__ import annotations

from harness.recipe import Settings

FORWARD: Settings = {
    "system": "You are a helpful assistant.",
    "generation_prompt": False,
    "suffix": "none",
    "instruction_place": "user",
    "instruction_tokens": True,
    "instruction_in_pool": False,
    "pool": "mean",
    "attention": "bidirectional",
    "rope": "1d",
    "deepstack": False,
    "max_pixels": 300 * 28 * 28,
    "text_tokens": 480,
    "dtype": "bfloat16",
}
"""What the model is shown and what is read off it: fields of InputSpec, saved with every checkpoint. The
released code trains like this and evaluates with a generation prompt and longer texts."""

BASE: Settings = {"base": "Qwen/Qwen2-VL-7B-Instruct", "revision": "main"}

ADAPTER: Settings = {
    "lora_rank": 128,
    "lora_alpha": 256,
    "lora_dropout": 0.05,
    "train_vision": False,
    "train_projector": False,
    "gradient_checkpointing": True,
}
"""What is trained; without a rank the weights themselves."""

SCHEDULE: Settings = {
    "epochs": 1,
    "warmup": 0.03,
    "weight_decay": 0.0,
    "clip": 1.0,
    "save_every": 50,
    "most_steps": None,
}

DATA: Settings = {"split": "train", "seed": 42}

LOSS: Settings = {
    "temperature": 0.05,
    "learn_temperature": False,
    "objective": "cross-entropy",
    "two_way": False,
    "two_way_weight": 1.0,
    "in_batch": True,
    "mask_duplicates": True,
    "gather": "gradient",
}
"""As published, but that a query's positive is never its negative, and that ranks share gradients:
`mask_duplicates=false gather=released` is what the released code does."""

CONTRASTIVE: Settings = {**BASE, **DATA, **FORWARD, **ADAPTER, **SCHEDULE, **LOSS, "crop": 1.0}
"""`crop`: the least of either side of a picture that is shown, a random part at each visit; 1, all of it,
as published. Few pictures teach more when they are never the same."""
