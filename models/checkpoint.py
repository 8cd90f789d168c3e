"""Checkpoints that transformers or peft saved: found, told apart and checked without loading, then loaded.

umarvel-7b/         config.json  tokenizer.json  preprocessor_config.json  model-00001-of-00004.safetensors …
my-adapter/         adapter_config.json  adapter_model.safetensors    (of a base that the first names)
org/name            the same on the model hub, at a commit
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from harness.compat import allow_torchvision
from harness.digest import Digests, digest
from harness.errors import CheckpointMissing, HarnessError
from harness.files import cache_dir
from harness.hub import endpoint

T = TypeVar("T")

ADAPTER = "adapter_config.json"
CONFIG = "config.json"
_MODEL_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_SETTINGS = (
    *(CONFIG, ADAPTER, "tokenizer.json", "processor_config.json"),
    *("preprocessor_config.json", "video_preprocessor_config.json"),
)
"""What, beside the weights, changes a vector."""

TOKENIZER = (
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "tokenizer.model"),
)
"""What transformers makes a tokenizer of, beside tokenizer.json."""

_QWEN = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
}
_CLASSES = {"clip": "CLIPModel", "siglip": "SiglipModel", **_QWEN}
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_MAIN = "main"


@dataclass(frozen=True, slots=True)
class Place:
    """A folder, or a commit of a repository of the model hub."""

    folder: Path | None = None
    repo: str = ""
    commit: str = ""

    def __str__(self) -> str:
        return str(self.folder) if self.folder is not None else f"{self.repo}@{self.commit}"

    def file(self, name: str) -> Path | None:
        """A small file, downloaded where need be; None where there is none. Raises CheckpointMissing."""
        if self.folder is not None:
            return self.folder / name if (self.folder / name).is_file() else None
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            return Path(hf_hub_download(self.repo, name, revision=self.commit, endpoint=endpoint()))
        except EntryNotFoundError:
            return None
        except Exception as error:  # the library raises its own, httpx's and built-in errors
            raise unreachable(self.repo, error) from error

    def json(self, name: str) -> dict[str, Any] | None:
        """A file of settings; None where there is none. Raises CheckpointMissing."""
        path = self.file(name)
        if path is None:
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointMissing(f"{path} is no JSON: {error}") from error
        if not isinstance(values, dict):
            raise CheckpointMissing(f"{path} must hold an object")
        return values

    def fetch(self, names: tuple[str, str]) -> Path:
        """The folder with the weights (`names`: safe, pickled), downloaded where need be."""
        if self.folder is not None:
            return self.folder
        from huggingface_hub import snapshot_download

        for name in names:
            stem, _, suffix = name.partition(".")
            patterns = [*_SETTINGS, f"{stem}*.{suffix}", f"{name}.index.json"]
            try:
                folder = Path(
                    snapshot_download(
                        self.repo, revision=self.commit, allow_patterns=patterns, endpoint=endpoint()
                    )
                )
            except Exception as error:  # as above
                raise unreachable(self.repo, error) from error
            if any(folder.glob(f"{stem}*.{suffix}")):
                break
        return folder


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole model, or an adapter and its base; `architecture` as config.json's model_type has it."""

    place: Place
    base: Place | None
    architecture: str
    fingerprint: str
    settings: tuple[str, ...] = _SETTINGS

    @classmethod
    def at(
        cls,
        path: str,
        revision: str,
        base: str = "",
        *,
        architecture: str | None,
        beside: tuple[str, ...] = (),
    ) -> Checkpoint:
        """A folder or a repository of the hub, of an architecture or (None) of any Qwen-VL, whose weights
        are not read yet.

        `base` overrides what an adapter says of its own; `beside`: small files that change a vector, too.
        Raises CheckpointMissing, HarnessError.
        """
        place = find(path, revision, "path")
        adapter = place.json(ADAPTER)
        if adapter is None and base:
            raise HarnessError(f"{place} is no adapter ({ADAPTER} is not there): leave out base={base}")
        under = None if adapter is None else _base(place, adapter, base)
        config = _required(under or place, CONFIG)
        found = config.get("model_type")
        known = _QWEN if architecture is None else (architecture,)
        if found not in known:
            wanted = " or ".join(map(repr, known))
            raise CheckpointMissing(f"{under or place} holds a model of type {found!r}, not {wanted}")
        settings = (*_SETTINGS, *beside)
        prints = [_fingerprint(place, _MODEL_WEIGHTS if under is None else _ADAPTER_WEIGHTS, settings)]
        if under is not None:
            prints.append(_fingerprint(under, _MODEL_WEIGHTS, settings))
        return cls(place, under, str(found), " on ".join(prints), settings)

    @property
    def whole(self) -> Place:
        """Where the model is that an adapter belongs to."""
        return self.base or self.place

    def found(self, name: str) -> Path | None:
        """A small file of the checkpoint or, where it has none, of its base; None where neither has it."""
        for place in filter(None, (self.place, self.base)):
            path = place.file(name)
            if path is not None:
                return path
        return None

    def file(self, name: str) -> Path:
        """As `found`. Raises CheckpointMissing where there is none."""
        path = self.found(name)
        if path is None:
            raise CheckpointMissing(f"{self.whole} lacks {name}: copy it from the model that it was made of")
        return path

    def json(self, *names: str) -> dict[str, Any] | None:
        """The first of these files of settings that the checkpoint or its base has."""
        for place in filter(None, (self.place, self.base)):
            for name in names:
                values = place.json(name)
                if values is not None:
                    return values
        return None

    def config(self) -> dict[str, Any]:
        return _required(self.whole, CONFIG)

    def small_files(self) -> Path:
        """The folder with the settings of a whole model, downloaded where need be."""
        for name in self.settings:
            self.whole.file(name)
        return self.file(CONFIG).parent

    def tensors(self) -> dict[str, Any]:
        """The weights of a whole model by their names, on the CPU. Raises CheckpointMissing."""
        found: dict[str, Any] = {}
        for file in weights(self.whole.fetch(_MODEL_WEIGHTS), _MODEL_WEIGHTS):
            found |= _or_missing(partial(_tensors, file), f"{file} cannot be read")
        return found

    def load(self, dtype: str, *, spare: tuple[str, ...] = ("lm_head.",)) -> Any:
        """The transformers model on the CPU, ready to be used; an adapter is merged in float32.

        `spare`: beginnings of names of weights that need not be there. Raises CheckpointMissing.
        """
        allow_torchvision()
        import torch

        folder = self.whole.fetch(_MODEL_WEIGHTS)
        model = _loaded(folder, self.architecture, "float32" if self.base else dtype, spare)
        if self.base is not None:
            model = _merged(model, self.place.fetch(_ADAPTER_WEIGHTS))
        return model.to(getattr(torch, dtype)).eval().requires_grad_(False)


def find(path: str, revision: str, option: str) -> Place:
    """The folder, or the commit that a revision of a repository is. `option`: what gave the path."""
    if path and Path(path).is_dir():
        return Place(Path(path).absolute())
    if _REPOSITORY.fullmatch(path) and not path.startswith("."):
        return Place(repo=path, commit=_commit(path, revision, option))
    raise CheckpointMissing(
        f"there is no checkpoint at {path}: give its folder or its name on the hub with"
        f" --model-arg {option}=PATH"
    )


def _base(place: Place, adapter: Mapping[str, Any], given: str) -> Place:
    named = given or adapter.get("base_model_name_or_path")
    if not named:
        raise CheckpointMissing(f"{place} names no base: give it with --model-arg base=PATH")
    try:
        base = find(str(named), str(adapter.get("revision") or _MAIN) if not given else _MAIN, "base")
    except CheckpointMissing as error:
        raise CheckpointMissing(f"{place} is an adapter: {error}") from error
    if base.json(ADAPTER) is not None and base.json(CONFIG) is None:
        raise CheckpointMissing(f"the base of {place}, {base}, is an adapter itself: merge it first")
    return base


def _required(place: Place, name: str) -> dict[str, Any]:
    values = place.json(name)
    if values is None:
        raise CheckpointMissing(f"{place} is no checkpoint: {name} is missing")
    return values


def _commit(repo: str, revision: str, option: str) -> str:
    """The commit that `revision` means: to the local cache, else to the hub; with neither, the one
    downloaded last."""
    from huggingface_hub import HfApi, constants

    cache = Path(constants.HF_HUB_CACHE, f"models--{repo.replace('/', '--')}")
    ref = cache / "refs" / revision
    if ref.is_file():
        return ref.read_text().strip()
    if _COMMIT.fullmatch(revision):
        return revision
    try:
        return str(HfApi(endpoint=endpoint()).model_info(repo, revision=revision, timeout=20).sha)
    except Exception as error:  # no network, no such repository, a gate, offline mode: one remedy
        downloaded = sorted((cache / "snapshots").glob("*"), key=lambda folder: folder.stat().st_mtime)
        if downloaded and revision == _MAIN:
            return downloaded[-1].name
        raise unreachable(repo, error, option) from error


def unreachable(repo: str, error: Exception, option: str = "path") -> CheckpointMissing:
    """The one line for a model that the hub did not give."""
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return CheckpointMissing(
        f"cannot get {repo} from the model hub ({reason}): download it elsewhere and give its folder"
        f" with --model-arg {option}=PATH"
    )


def _fingerprint(place: Place, names: tuple[str, str], settings: tuple[str, ...]) -> str:
    """The commit, or the digest of all files that change a vector."""
    if place.folder is None:
        return str(place)
    files = [*weights(place.folder, names)]
    files += [place.folder / name for name in settings if (place.folder / name).is_file()]
    digests = Digests(cache_dir() / "digests.sqlite")
    found = digest({file.name: digests(file) for file in files}, length=32)
    digests.save()
    return found


def weights(folder: Path, names: tuple[str, str]) -> list[Path]:
    """The files of weights in a folder; `names` of the safe and of the pickled form. Raises
    CheckpointMissing where one is missing or broken off."""
    for name in names:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            files = [folder / name]
        elif index.is_file():
            files = [folder / shard for shard in _shards(index)]
        else:
            continue
        for file in files:
            require_whole(file)
        return files
    raise CheckpointMissing(f"{folder} holds no weights: {' or '.join(names)} is needed")


def _shards(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointMissing(f"{index} is no index of weights: {error!r}") from error


def require_whole(file: Path) -> None:
    """Raises CheckpointMissing for a file that is not there or, by a safe one's header, broken off."""
    if not file.is_file():
        raise CheckpointMissing(f"{file} is missing: download the checkpoint again")
    if file.suffix != ".safetensors":
        return
    size = file.stat().st_size
    with file.open("rb") as content:
        header = int.from_bytes(content.read(8), "little")
        if size < 8 or header > size - 8:
            raise CheckpointMissing(f"{file} is broken off or no safetensors file: download it again")
        try:
            tensors = json.loads(content.read(header))
            end = max(
                (t["data_offsets"][1] for name, t in tensors.items() if name != "__metadata__"), default=0
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointMissing(f"{file} is no safetensors file: download it again") from error
    if size != 8 + header + end:
        raise CheckpointMissing(f"{file} has {size:,} bytes, not {8 + header + end:,}: download it again")


def _loaded(folder: Path, architecture: str, dtype: str, spare: tuple[str, ...]) -> Any:
    import torch
    import transformers

    safe = weights(folder, _MODEL_WEIGHTS)[0].suffix == ".safetensors"
    with quietly():
        model, info = _or_missing(
            lambda: getattr(transformers, _CLASSES[architecture]).from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                attn_implementation="sdpa",
                local_files_only=True,
                use_safetensors=safe,
                weights_only=True,
                output_loading_info=True,
            ),
            f"{folder} does not hold weights of {architecture}",
        )
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(spare))
    if missing:
        raise CheckpointMissing(
            f"{folder} lacks {len(missing)} of the weights of {architecture}: {missing[0]} …"
        )
    return model


def _or_missing(load: Callable[[], T], what: str) -> T:
    """What `load` gives; whatever a library raises over broken weights becomes CheckpointMissing."""
    try:
        return load()
    except (MemoryError, HarnessError):
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if reason.startswith("Weights only load failed"):  # torch goes on to advise running what is in it
            reason = "a pickle of more than tensors, save it as safetensors"
        raise CheckpointMissing(f"{what}: {reason}") from error


def _merged(model: Any, folder: Path) -> Any:
    """The model with an adapter's weights added to its own.

    Names are matched to what the model's modules are called now: they were others in the transformers
    that adapters of LamRA's and U-MARVEL's code were trained with.
    """
    import torch

    (file,) = weights(folder, _ADAPTER_WEIGHTS)
    what = f"{file} does not fit its base"
    tensors = _or_missing(lambda: _tensors(file), f"{file} cannot be read")
    renamed = {_current_name(model, key.removeprefix("base_model.model.")): t for key, t in tensors.items()}
    lora = {key: tensor for key, tensor in renamed.items() if ".lora_" in key}
    if not lora:
        raise CheckpointMissing(f"{file} holds no LoRA weights")
    with torch.no_grad(), quietly():
        for name, own in model.named_parameters():
            if name in renamed:  # trained beside; whatever has no name here, as a loss's, is left
                _or_missing(partial(_overwrite, own, renamed[name]), f"{what} at {name}")
        return _adapted(model, folder, lora, what).merge_and_unload(safe_merge=True)


def _overwrite(own: Any, tensor: Any) -> None:
    """A table that was cut to the tokenizer's size fills the first rows."""
    own[: len(tensor)].copy_(tensor)


def _adapted(model: Any, folder: Path, lora: Mapping[str, Any], what: str) -> Any:
    """The peft model; `lora` by the names of today. Raises CheckpointMissing unless all of it fits."""
    try:
        import peft
    except ImportError as error:
        raise HarnessError("adapters need peft: pip install 'umr-harness[qwen]'") from error
    config = _or_missing(lambda: peft.PeftConfig.from_pretrained(str(folder)), str(folder / ADAPTER))
    config.target_modules = {key.partition(".lora_")[0] for key in lora}
    config.modules_to_save = config.task_type = None
    config.inference_mode = True
    adapted = _or_missing(lambda: peft.get_peft_model(model, config), what)
    state = {f"base_model.model.{key}": tensor for key, tensor in lora.items()}
    result: Any = _or_missing(lambda: peft.set_peft_model_state_dict(adapted, state), what)
    lost = [key for key in result.missing_keys if ".lora_" in key] + list(result.unexpected_keys)
    if lost:
        raise CheckpointMissing(f"{what}: {len(lost)} weights have no counterpart, such as {lost[0]}")
    return adapted


def _tensors(file: Path) -> dict[str, Any]:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    import torch

    tensors: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return tensors


def _current_name(model: Any, key: str) -> str:
    """A weight's name in the model as it is today; unchanged where none fits."""
    module = key.partition(".lora_")[0].removesuffix(".weight").removesuffix(".bias")
    for old, new in (("", ""), ("model.", "model.language_model."), ("visual.", "model.visual.")):
        if module.startswith(old):
            try:
                model.get_submodule(new + module.removeprefix(old))
            except AttributeError:
                continue
            return new + key.removeprefix(old)
    return key


@contextmanager
def quietly() -> Iterator[None]:
    """transformers draws bars and reports every weight that is not used, peft uses what it deprecates."""
    from transformers import utils

    logging: Any = utils.logging  # untyped
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
