"""Small Qwen2-VL-shaped models with random weights, to run whole recipes where no 7B model fits.

base = "scratch:tiny"   ->   results/training/base-tiny-1/   config.json  model.safetensors  tokenizer.json …
"""

from __future__ import annotations

import shutil
from pathlib import Path

from harness.recipe import StageRun

from ..tiny_qwen import write_tiny_qwen

SCRATCH = "scratch:"


def scratch(run: StageRun, size: str) -> Path:
    """The folder of a base model of this size, written by the first rank where it is not there yet."""
    folder = run.output_dir / f"base-{size}-1"
    if run.ranks.rank == 0 and not folder.exists():
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        write_tiny_qwen(part, "qwen2_vl")
        part.rename(folder)
    run.ranks.wait(run.engine.device)
    return folder
