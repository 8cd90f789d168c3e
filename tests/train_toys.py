"""A text task to train on and a contrastive stage of a tiny model, as a module that launchers can run.

python train_toys.py FOLDER [SETTING=VALUE …]     train in FOLDER, under torchrun or alone
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from harness.collection import Collection, Pool
from harness.content import Candidate, Query, Text
from harness.encode import EngineOptions
from harness.models.training import stage as training
from harness.models.training.contrastive import contrastive
from harness.models.training.corpus import use
from harness.models.training.estimates import contrastive_cost
from harness.models.training.settings import CONTRASTIVE
from harness.models.umarvel import SPEC
from harness.ranks import Ranks
from harness.recipe import Recipe, Stage, parsed
from harness.train import TrainOptions, plan, train
from toys import task

COLOURS = ("red", "blue", "green", "grey", "pink", "black")
THINGS = ("cat", "boat", "house", "tree", "cup", "hat", "car", "dog")


def pairs() -> Collection:
    """48 queries, "a red cat", each about the candidate "cat, red"."""
    names = [(colour, thing) for colour in COLOURS for thing in THINGS]
    queries = [Query(f"q{i}", (Text(f"a {c} {t}"),), "Find it.") for i, (c, t) in enumerate(names)]
    pool = Pool("pairs", [Candidate(f"c{i}", (Text(f"{t}, {c}"),)) for i, (c, t) in enumerate(names)])
    return Collection(queries, pool, {f"q{i}": {f"c{i}": 1} for i in range(len(names))})


PAIRS = task(pairs, "toys/pairs")
SETTINGS = {
    **CONTRASTIVE,
    **{"base": "scratch:toy", "tasks": "toys/pairs", "split": "test", "dtype": "float32"},
    **{"lora_rank": 4, "lora_alpha": 8, "batch": 8, "learning_rate": 3e-3, "learn_temperature": True},
    **{"save_every": 2, "most_steps": 6, "gradient_checkpointing": False, "system": None},
}


def toy_contrastive(run):
    """InfoNCE on what U-MARVEL is shown."""
    contrastive(run, SPEC)


STAGE = Stage(
    name="pairs",
    title="pairs of toys",
    objective="InfoNCE",
    settings=SETTINGS,
    makes=("model", "log.csv"),
    run=toy_contrastive,
    estimate=contrastive_cost,
    uses=lambda settings: [use(settings)],
)
TOY = Recipe("toy", "Toy", (STAGE,))


def options(folder: Path, *, chunk: int = 32, workers: int = 0) -> TrainOptions:
    """Below a folder, on the CPU."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    return TrainOptions(
        data=folder / "data",
        output_dir=folder / "out",
        cache_dir=folder / "cache",
        engine=EngineOptions(workers=workers, quiet=True),
        tasks={PAIRS.name: PAIRS},
        chunk=chunk,
        ranks=Ranks.of(),
    )


def trained(folder: Path, *, recipe: Recipe = TOY, chunk: int = 32, workers: int = 0, **settings) -> Path:
    """Train the last stage of a recipe; its folder."""
    stages = tuple(replace(s, settings={**s.settings, **settings}) for s in recipe.stages)
    recipe = replace(recipe, stages=stages)
    chosen = options(folder, chunk=chunk, workers=workers)
    planned = plan(recipe, [s.name for s in stages], chosen)
    train(recipe, planned, chosen, tell=print)
    return planned[-1].folder


def accelerate_takes_cpus_for_gpus() -> None:
    """Accelerate uses DeepSpeed and FSDP on GPUs alone; both run on a CPU too, over gloo."""
    import torch
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
    PartialState._prepare_backend = lambda self, *given, **more: ("gloo", DistributedType.MULTI_GPU)


def stop_after(steps: int) -> None:
    """End the process as its step of this number begins."""
    real, taken = training.cached_step, []

    def step(*given, **more):
        taken.append(1)
        if len(taken) > steps:
            sys.exit("stopped")
        return real(*given, **more)

    training.cached_step = step


if __name__ == "__main__":
    if {"ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"} & set(os.environ):
        accelerate_takes_cpus_for_gpus()
    given = dict(text.split("=", 1) for text in sys.argv[2:])
    chunk = int(given.pop("chunk", 32))
    if "stop" in given:
        stop_after(int(given.pop("stop")))
    trained(Path(sys.argv[1]), chunk=chunk, **{k: parsed(v, SETTINGS[k]) for k, v in given.items()})
    Ranks.of().leave()
