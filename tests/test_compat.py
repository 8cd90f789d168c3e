"""What is needed before others' packages can be imported."""

from __future__ import annotations

import subprocess
import sys


def test_torchvision_open_clip_and_transformers_import_beside_any_torch() -> None:
    code = (
        "from harness.compat import allow_torchvision\n"
        "allow_torchvision(); allow_torchvision()\n"
        "import torchvision, open_clip\n"
        "from transformers import AutoModel\n"
        "allow_torchvision()\n"
        "assert len(torchvision.models._meta._IMAGENET_CATEGORIES) == 1000\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
