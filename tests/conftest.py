"""Tiny models run faster on one thread, and every test gets folders of its own."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # else Ray writes one to the home folder
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("HARNESS_SHARED_CACHE", "")
    monkeypatch.delenv("HARNESS_DATA", raising=False)


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a few small pictures p0.png … p5.png."""
    from harness.testing import write_picture

    folder = tmp_path_factory.mktemp("media")
    for i in range(6):
        write_picture(folder / f"p{i}.png", seed=i)
    return folder


@pytest.fixture(scope="session")
def tiny_qwen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint of each generation of Qwen-VL."""
    from harness.models.tiny_qwen import write_tiny_qwen

    names = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
    return {name: write_tiny_qwen(tmp_path_factory.mktemp(name), name) for name in names}


@pytest.fixture(scope="session")
def qwen_media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """p.png and q.png, pictures of strange shapes, and clips of 12, 5 and 1 frames."""
    from harness.testing import write_clip, write_picture

    folder = tmp_path_factory.mktemp("qwen_media")
    sizes = {"p": (64, 48), "q": (40, 90), "dot": (1, 1), "line": (1, 300), "wide": (701, 500)}
    for seed, (name, size) in enumerate(sizes.items()):
        write_picture(folder / f"{name}.png", seed=seed, size=size)
    for count in (12, 5, 1):
        write_clip(folder / f"{count}.mp4", seed=count, frames=count)
    return folder


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    """Run the console script's function in an empty folder: (exit status, stdout, stderr)."""
    from harness.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["harness", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capsys.readouterr()
        return exit_.value.code or 0, out, err

    return run


@pytest.fixture(scope="session")
def real_stamps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with the stamps: the installed package, or Debian's file unpacked."""
    folder = tmp_path_factory.mktemp("data")
    if not Path("/usr/share/tuxpaint/stamps").is_dir():
        subprocess.run(["apt-get", "download", "tuxpaint-stamps-default"], cwd=folder, check=True)
        (package,) = folder.glob("*.deb")
        subprocess.run(["dpkg", "-x", package, folder / "unpacked"], check=True)
        (folder / "stamps").symlink_to(folder / "unpacked/usr/share/tuxpaint/stamps")
    return folder
