"""A doctor: is what the harness needs installed, and does it work here? Each finding has its remedy.

Finding(name="faiss", verdict="warn", detail="not installed", remedy="pip install 'umr-harness[faiss]'")
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.cache import leftovers, stores
from harness.content import Image, Video
from harness.errors import HarnessError, StorageError
from harness.files import require_writable
from harness.hub import endpoint
from harness.hub import shown as size
from harness.media import decoder, frames, open_picture
from harness.registry import load_catalog
from harness.task import Need, Protocol, Suite, Task
from harness.testing import write_clip, write_picture
from harness.tripwires import Verdict

if TYPE_CHECKING:
    from packaging.requirements import Requirement

DISTRIBUTION = "umr-harness"
PYTHON = (3, 11)
SPACE = (1 << 30, 20 << 30)
"""Free bytes below which a run will stop, and below which a large one may."""
DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `remedy` is the command that mends it, or empty."""

    name: str
    verdict: Verdict
    detail: str
    remedy: str = ""


def examine(data: Path, output_dir: Path, cache_dir: Path, *, hub: bool = False) -> Iterator[Finding]:
    """All findings, one after the other; nothing is left behind. `hub` asks the network."""
    yield _python()
    yield from _libraries()
    yield _torch()
    yield _faiss()
    with tempfile.TemporaryDirectory() as scratch:
        yield _pictures(Path(scratch))
        yield _clips(Path(scratch))
    yield _folder("output folder", output_dir, "--output-dir")
    yield _folder("cache folder", cache_dir, "--cache-dir")
    yield _cache(cache_dir)
    yield from _plugins_and_data(data)
    if hub:
        yield _hub()


def _python() -> Finding:
    here = platform.python_version()
    if sys.version_info < PYTHON:
        wanted = ".".join(map(str, PYTHON))
        return Finding("python", "FAIL", here, f"python{wanted} -m venv .venv, and install again there")
    return Finding("python", "pass", here)


def _libraries() -> Iterator[Finding]:
    """The distribution's own requirements, by extra: what is missing or of another version."""
    from packaging.requirements import Requirement

    by_extra: dict[str, list[Requirement]] = {}
    for line in metadata.requires(DISTRIBUTION) or ():
        wanted = Requirement(line)
        named = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        extra = named[1] if named else ""
        if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
            by_extra.setdefault(extra, []).append(wanted)
    by_extra.pop("dev", None)
    for extra, requirements in by_extra.items():
        faults = [fault for wanted in requirements for fault in _fault(wanted)]
        name = f"libraries of [{extra}]" if extra else "libraries"
        if not faults:
            yield Finding(name, "pass", _versions(requirements))
        elif extra:
            verdict: Verdict = "not applicable" if extra == "gpu" and not DRIVER.exists() else "warn"
            yield Finding(name, verdict, "; ".join(faults), f"pip install '{DISTRIBUTION}[{extra}]'")
        else:
            mended = " ".join(f"'{r.name}{r.specifier}'" for r in requirements if list(_fault(r)))
            yield Finding(name, "FAIL", "; ".join(faults), f"pip install {mended}")


def _versions(requirements: Sequence[Requirement]) -> str:
    names = (r.name for r in requirements if r.name != DISTRIBUTION)
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)


def _fault(wanted: Requirement) -> Iterator[str]:
    if wanted.name == DISTRIBUTION:
        return
    try:
        version = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        yield f"{wanted.name} is not installed"
        return
    if not wanted.specifier.contains(version, prereleases=True):
        yield f"{wanted.name} {version} is not {wanted.specifier}"


def _torch() -> Finding:
    """Whether torch can be imported, and sees the GPU that the machine has."""
    try:
        import torch
    except Exception as error:  # a torn installation raises anything
        return Finding("torch", "FAIL", _reason(error), "pip install --force-reinstall torch")
    built = torch.version.cuda
    version = f"torch {torch.__version__}"
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        return Finding("gpu", "pass", f"{version}, CUDA {built}, {name}, {size(free)} of {size(total)} free")
    if not DRIVER.exists():
        return Finding("gpu", "not applicable", f"{version}; no NVIDIA driver here: cpu")
    driver = DRIVER.read_text().splitlines()[0]
    if built is None:
        remedy = "pip install --force-reinstall torch, from an index of CUDA builds (pytorch.org/get-started)"
        return Finding(
            "gpu", "warn", f"{version} is built for the CPU, but there is a driver: {driver}", remedy
        )
    detail = f"{version} is built for CUDA {built}, which the driver cannot run: {driver}"
    return Finding(
        "gpu", "FAIL", detail, f"upgrade the driver to one for CUDA {built}, or install an older torch"
    )


def _faiss() -> Finding:
    """faiss is optional: the torch searcher is built in."""
    found = [name for name in ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12") if _there(name)]
    if len(found) > 1:
        remedy = f"pip uninstall -y {' '.join(found)} && pip install {found[-1]}"
        return Finding("faiss", "FAIL", f"{' and '.join(found)} overwrite each other", remedy)
    if not importlib.util.find_spec("faiss"):
        remedy = f"pip install '{DISTRIBUTION}[faiss]'"
        return Finding("faiss", "not applicable", "not installed; the torch searcher is built in", remedy)
    try:
        import faiss

        index = faiss.IndexFlatIP(2)
        index.add(np.eye(2, dtype=np.float32))
        _, rows = index.search(np.array([[0, 1]], np.float32), 1)
    except Exception as error:  # a torn installation raises anything
        return Finding("faiss", "FAIL", _reason(error), f"pip install --force-reinstall {' '.join(found)}")
    if rows.tolist() != [[1]]:
        return Finding(
            "faiss", "FAIL", f"finds row {rows[0, 0]}, not 1", f"pip install --force-reinstall {found[0]}"
        )
    gpus = faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0
    return Finding("faiss", "pass", f"{faiss.__version__}, {f'{gpus} GPUs' if gpus else 'on the CPU'}")


def _there(distribution: str) -> bool:
    try:
        return bool(metadata.version(distribution))
    except metadata.PackageNotFoundError:
        return False


def _pictures(scratch: Path) -> Finding:
    """Whether the formats of data sets are read."""
    faults = []
    for suffix in ("jpg", "png", "webp"):
        try:
            picture = open_picture(Image(write_picture(scratch / f"p.{suffix}", seed=1)))
            if picture.size != (48, 48):
                faults.append(f"{suffix}: {picture.size}")
        except Exception as error:  # a Pillow without a codec raises KeyError, OSError, …
            faults.append(f"{suffix}: {_reason(error)}")
    version = f"pillow {metadata.version('pillow')}"
    if faults:
        return Finding(
            "pictures", "FAIL", f"{version}: {'; '.join(faults)}", "pip install --force-reinstall pillow"
        )
    return Finding("pictures", "pass", f"{version} reads JPEG, PNG and WebP")


def _clips(scratch: Path) -> Finding:
    """Whether a small clip is decoded, in order."""
    remedy = f"pip install '{DISTRIBUTION}[video]'"
    if decoder() == "none":
        return Finding("clips", "warn", "neither PyAV nor decord is installed: no clips are read", remedy)
    if importlib.util.find_spec("av") is None:
        return Finding("clips", "warn", f"{decoder()}, without PyAV: AVI and AV1 are not read", remedy)
    try:
        clip = write_clip(scratch / "clip.mp4", seed=1)
        seen = [np.asarray(f.convert("L"), dtype=float) for f in frames(Video(clip, frames=4))]
    except Exception as error:  # both libraries have trees of their own
        return Finding("clips", "FAIL", f"{decoder()}: {_reason(error)}", f"{remedy} --force-reinstall")
    moving = len(seen) == 4 and all(np.abs(a - b).max() > 20 for a, b in pairwise(seen))
    if not moving:
        detail = f"{decoder()}: {len(seen)} frames of a moving square, not 4 different ones"
        return Finding("clips", "FAIL", detail, f"{remedy} --force-reinstall")
    return Finding("clips", "pass", f"a small H.264 clip is decoded by {decoder()}")


def _folder(name: str, folder: Path, flag: str) -> Finding:
    """Whether files can be written, and how much space is left. Makes no folder."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    try:
        if not there.is_dir():
            raise StorageError(f"{there} is not a folder")
        require_writable(there, f"the {name}")
    except HarnessError as error:
        return Finding(name, "FAIL", str(error), f"chmod u+w {there}, or choose another with {flag}")
    free = shutil.disk_usage(there).free
    detail = f"{folder}: {size(free)} free"
    if free < SPACE[1]:
        verdict: Verdict = "FAIL" if free < SPACE[0] else "warn"
        return Finding(name, verdict, detail, f"free some space, or choose another disk with {flag}")
    return Finding(name, "pass", detail)


def _cache(root: Path) -> Finding:
    """Whether every shard's manifest can be read and its rows have the size that it says."""
    kept = stores(root)
    shards, unusable = sum(store.shards for store in kept), sum(store.unusable for store in kept)
    if unusable:
        detail = f"{unusable} of {shards + unusable} shards are damaged; they are encoded again when wanted"
        return Finding("cache", "warn", detail, f"harness cache verify --repair --cache-dir {root}")
    if torn := leftovers(root):
        remedy = f"harness cache gc --yes --cache-dir {root}"
        return Finding("cache", "warn", f"{len(torn)} files of interrupted runs", remedy)
    return Finding("cache", "pass", f"{shards} shards, {sum(store.rows for store in kept):,} rows")


def _plugins_and_data(data: Path) -> Iterator[Finding]:
    try:
        catalog = load_catalog()
    except HarnessError as error:
        yield Finding("plugins", "FAIL", str(error), "pip uninstall one of the two")
        return
    for plugin in catalog.plugins:
        if plugin.error:
            last = plugin.error.strip().splitlines()[-1]
            remedy = (
                f"mend it (harness list plugins shows where), or pip uninstall {plugin.name.split(':')[0]}"
            )
            yield Finding(f"plugin {plugin.name}", "FAIL", last, remedy)
    sound = [p for p in catalog.plugins if not p.error]
    yield Finding("plugins", "pass", ", ".join(f"{p.name} {p.version}" for p in sound))
    for suite in catalog.suites.values():
        yield _suite(suite, catalog.tasks, data)


def _suite(suite: Suite, tasks: Mapping[str, Task], data: Path) -> Finding:
    """How many tasks of a suite have all their files."""
    name = f"suite {suite.name}"
    known = [tasks[t] for t in suite.tasks if t in tasks]
    lacking: dict[str, list[Need]] = {}
    for task in known:
        gone = [need for need in task.needs(Protocol()) if need.find(data) is None]
        if gone:
            lacking[task.name] = gone
    ready = len(known) - len(lacking)
    detail = f"{ready} of {len(known)} tasks are ready in {data}"
    if not lacking:
        return Finding(name, "pass", detail)
    first = next(iter(lacking.values()))[0]
    on_hub = any(need.hub is not None for gone in lacking.values() for need in gone)
    remedy = f"harness data fetch {suite.name} --data {data}" if on_hub else first.source
    return Finding(name, "warn" if ready else "not applicable", detail, remedy)


def _hub() -> Finding:
    """Whether the Hugging Face hub answers."""
    place = endpoint()
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return Finding(
            "hub", "warn", "HF_HUB_OFFLINE is set: only what is cached is used", "unset HF_HUB_OFFLINE"
        )
    from huggingface_hub import get_session

    try:
        status = get_session().head(place, timeout=10).status_code
    except Exception as error:  # proxies, certificates and names fail in a dozen ways
        remedy = "check the network and HTTPS_PROXY, or name a mirror in HF_ENDPOINT"
        return Finding("hub", "FAIL", f"{place}: {_reason(error)}", remedy)
    return Finding("hub", "pass", f"{place} answers ({status})")


def _reason(error: BaseException) -> str:
    said = str(error).strip().partition("\n")[0]
    return said or type(error).__name__
