"""The model under training: a Qwen-VL checkpoint, what of it is trained, and how it is saved for the next stage.

results/training/mbeir-3c5f…/model/   config.json  model.safetensors  tokenizer.json  input_spec.json
                                      temperature.json    {"temperature": 0.0213}
"""  # noqa: E501

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import CheckpointMissing, HarnessError
from harness.files import write_text
from harness.model import ModelSpec
from harness.recipe import MODEL, Checkpoints, Settings, Stage, StageRun

from ..checkpoint import quietly
from ..input_spec import FILE, InputSpec, option
from ..qwen_vl import ARCHITECTURES, QwenBatch, QwenFrontend, open_qwen, tiny_options, vectors
from .losses import learned_temperature
from .scratch import SCRATCH, scratch
from .taught import TAUGHT, taught, taught_fingerprint

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

TEMPERATURE = "temperature.json"
RETRIEVER = "retriever"
"""The role of the retriever whose lists a reranker learns to order."""
SAVED = "model"
"""The folder, in that of a stage, of the checkpoint that it makes."""
_COPIED = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "chat_template.json"),
    *("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"),
)


@dataclass(frozen=True, slots=True)
class Trained:
    """What of a model is trained: low-rank adapters of so many dimensions, or, without, the weights."""

    rank: int | None
    alpha: int
    dropout: float
    vision: bool
    """Whether the vision tower's linear layers too."""
    projector: bool
    """Whether the weights of what joins the tower to the language model too."""
    seed: int
    """Of the adapters' first weights."""

    @classmethod
    def of(cls, settings: Settings) -> Trained:
        return cls(
            rank=settings["lora_rank"],  # type: ignore[arg-type]
            alpha=settings["lora_alpha"],  # type: ignore[arg-type]
            dropout=settings["lora_dropout"],  # type: ignore[arg-type]
            vision=bool(settings["train_vision"]),
            projector=bool(settings["train_projector"]),
            seed=int(settings["seed"]),  # type: ignore[arg-type]
        )


def spec_of(settings: Settings, base: InputSpec) -> InputSpec:
    """The InputSpec with the fields that the settings name."""
    named = {f.name for f in fields(InputSpec)} & set(settings)
    return replace(base, **{name: settings[name] for name in named})  # type: ignore[arg-type]


def start_of(run: StageRun) -> str:
    """The checkpoint that a stage starts from: that of the stage that plays MODEL, or the base."""
    return str(run.inputs[MODEL] / SAVED) if MODEL in run.inputs else base_of(run)


def base_of(run: StageRun) -> str:
    """The checkpoint that the settings name; a small one is made where it is not there yet."""
    base = str(run.settings["base"])
    for prefix, make in ((SCRATCH, scratch), (TAUGHT, taught)):
        if base.startswith(prefix):
            return str(make(run, base.removeprefix(prefix)))
    return base


def base_fingerprint(stage: Stage, opened: Callable[[str], QwenFrontend]) -> str | None:
    """That of the checkpoint which a stage starts from, as `Stage.base` has it; None for one that another
    stage makes, or that is made of nothing. `opened(path)` raises what is wrong with it."""
    base = str(stage.settings["base"])
    if MODEL in stage.needs or base.startswith(SCRATCH):
        return None
    if base.startswith(TAUGHT):
        return taught_fingerprint(base.removeprefix(TAUGHT), stage.settings)
    try:
        return opened(base).checkpoint.fingerprint
    except CheckpointMissing as error:
        said = re.sub(r"--[a-z]+-arg path=", f"--set {stage.name}.base=", str(error))
        raise CheckpointMissing(said) from error


def checkpoints_of(spec: InputSpec) -> Checkpoints:
    """How to open the retrievers of stages that train what is shown like this."""
    model = ModelSpec(
        name="trained",
        title="what a stage has trained",
        open=partial(open_qwen, "trained", "", None, spec),
        tiny=partial(tiny_options, ARCHITECTURES[0]),
        source="harness train",
        licence="that of its base and of its data",
    )
    return Checkpoints(model, start_of)


def embedder_base(stage: Stage) -> str | None:
    """`Stage.base` of those that train or use an embedder."""
    return base_fingerprint(stage, lambda path: open_frontend(path, stage.settings, InputSpec()))


def open_frontend(path: str, settings: Settings, spec: InputSpec) -> QwenFrontend:
    """The frontend of a checkpoint, shown what the settings say whatever was saved beside it."""
    given = {option(name): value for name, value in spec_of(settings, spec).shown().items()}
    place = {"path": path, "revision": str(settings.get("revision") or "main")}
    return open_qwen("training", "", None, spec, {**place, **given})


def learned(path: str, default: float) -> float:
    """The temperature that the stage before has learned. Raises CheckpointMissing for one that is none."""
    file = Path(path) / TEMPERATURE
    if not file.is_file():
        return default
    try:
        return float(json.loads(file.read_text(encoding="utf-8"))["temperature"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointMissing(
            f"{file} holds no temperature ({error!r}): delete it, or train again"
        ) from error


def embedding(frontend: QwenFrontend, trained: Trained, temperature: float | None) -> Module:
    """The module to train: `forward(batch)` gives [B, D] float32 vectors; `.temperature()` is τ.

    `whole` is the transformers model, with its adapters where there are any. Without a learned
    temperature (None) there is no parameter for one.
    """
    import torch

    whole = adapted(frontend.checkpoint.load(frontend.spec.dtype), trained)

    class Embedding(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whole = whole
            self.temperature: Any = None if temperature is None else learned_temperature(temperature)

        def forward(self, batch: QwenBatch) -> Tensor:
            rows = vectors(inner(self.whole), batch, frontend.vision, frontend.spec)
            if self.temperature is None:
                return rows
            seen: Tensor = rows + 0 * self.temperature.raw  # wrappers look here for what has a gradient
            return seen

    return Embedding()


def inner(whole: Any) -> Any:
    """The transformers model without head, of one with adapters too."""
    return (whole.get_base_model() if hasattr(whole, "get_base_model") else whole).model


def adapted(model: Any, trained: Trained) -> Any:
    """The model with what is trained of it wanting a gradient, in float32, and nothing else."""
    import torch

    layers = _linear(model, vision=trained.vision)
    if trained.rank is not None:
        try:
            import peft
        except ImportError as error:
            raise HarnessError("adapters need peft: pip install 'umr-harness[train]'") from error
        config = peft.LoraConfig(
            r=trained.rank,
            lora_alpha=trained.alpha,
            lora_dropout=trained.dropout,
            bias="none",
            target_modules=layers,
        )
        with quietly(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(trained.seed)
            model = peft.get_peft_model(model, config)
    whole = inner(model)
    weights = [] if trained.rank is not None else [whole.language_model, *([whole.visual] * trained.vision)]
    if trained.projector:
        weights.append(whole.visual.merger)
    for part in weights:
        for parameter in part.parameters():
            parameter.requires_grad_(True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    return model


def _linear(model: Any, *, vision: bool) -> list[str]:
    """The names of the linear layers of the language model and, maybe, of the vision tower."""
    import torch

    parts = ("model.language_model.", "model.visual.") if vision else ("model.language_model.",)
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith(parts)
    ]


def save(module: Any, frontend: QwenFrontend, folder: Path) -> None:
    """Write the checkpoint of a trained module: adapters merged in float32, then rounded to its dtype.

    The temperature and the InputSpec go beside it. Written aside first, so that it is whole or not there.
    """
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_whole(module.whole, frontend, part)
    write_text(part / FILE, frontend.spec.to_json())
    if module.temperature is not None:
        write_text(
            part / TEMPERATURE, json.dumps({"temperature": float(module.temperature().detach())}) + "\n"
        )
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def save_whole(whole: Any, frontend: QwenFrontend, folder: Path) -> None:
    """The weights, merged, and what else a checkpoint consists of."""
    import torch

    whole = whole.float()
    with quietly():
        if hasattr(whole, "merge_and_unload"):
            whole = whole.merge_and_unload(safe_merge=True)
        whole.to(getattr(torch, frontend.spec.dtype)).save_pretrained(folder)
    for name in _COPIED:
        file = frontend.checkpoint.found(name)
        if file is not None:
            shutil.copy(file, folder / name)
