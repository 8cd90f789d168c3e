"""`harness eval` and `harness plan`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness import files
from harness.errors import HarnessError, UnknownName

from .app import app
from .plans import print_plans
from .shared import (
    BatchTokens,
    CacheDir,
    Data,
    Device,
    ModelArgs,
    ModelName,
    OutputDir,
    Quiet,
    SharedCache,
    Split,
    StoreDtype,
    SuiteNames,
    TaskNames,
    Verbose,
    Workers,
    batch_budget,
    chosen_suites,
    installed,
    options_of,
    print_board,
    say,
    size_in_bytes,
    usable_device,
    use_caches,
    words,
)

if TYPE_CHECKING:
    from harness.cluster import Cluster
    from harness.evaluate import EvalOptions, Outcome, Reranking
    from harness.registry import Catalog
    from harness.task import Task


INSTRUCTIONS = ("hash", "first", "none", "1", "2", "3", "4", "all")


class Overwrite(StrEnum):
    """What to do about a cell whose result file is already there."""

    always = "always"
    never = "never"
    only_missing = "only-missing"
    only_cache = "only-cache"


class EngineName(StrEnum):
    """Where items are embedded."""

    local = "local"
    ray = "ray"


EngineChoice = Annotated[
    EngineName,
    typer.Option(
        "--engine", help="Embed in this process, or on all devices of the Ray cluster at $RAY_ADDRESS."
    ),
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Let torch compile the model: slow to start, then faster.")
]
SearcherName = Annotated[str, typer.Option("--searcher", help="Search backend: torch, faiss, or a plugin's.")]
SearchMemory = Annotated[str, typer.Option(help="Memory budget of the search, such as 512M or 2G.")]
Profile = Annotated[str, typer.Option("--prompt-profile", help="Whose prompts.")]
Instructions = Annotated[
    str,
    typer.Option(
        help="Which of several instructions a query gets: hash, first, none, 1 to 4, or all (their mean)."
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of what is drawn (instructions).")]
Limit = Annotated[
    int | None, typer.Option(min=1, help="A smoke test: so many queries, a cut pool; never a real score.")
]
SkipBroken = Annotated[
    bool,
    typer.Option(
        "--skip-broken", help="Leave out items whose media cannot be read; counted, in the protocol."
    ),
]
Compat = Annotated[
    list[str] | None,
    typer.Option("--compat", help="Reproduce a published evaluator's quirk by name; see tasks/README.md."),
]
Rerank = Annotated[
    str | None,
    typer.Option("--rerank", help="A reranker for the best candidates; see 'harness list models'."),
]
RerankArgs = Annotated[
    list[str] | None,
    typer.Option("--rerank-arg", metavar="KEY=VALUE", help="An option of the reranker; repeatable."),
]
Depth = Annotated[
    list[str] | None,
    typer.Option("--depth", help="How many candidates to re-rank: N, or TASKS=N; default: as published."),
]
FusionWeight = Annotated[
    list[str] | None,
    typer.Option(
        "--fusion-weight",
        help="Score + weight · reranker's: W, TASKS=W, or tune:SPLIT, the best on that split of each task;"
        " repeatable; default: as published.",
    ),
]
Oracle = Annotated[
    bool, typer.Option("--oracle", help="Let tune: use the split that is scored; such rows are not ranked.")
]
Strategy = Annotated[
    Overwrite, typer.Option("--overwrite-strategy", help="About results that are already there.")
]
Timings = Annotated[bool, typer.Option("--timings", help="Print where the time went.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done (the same as 'plan').")]
Probe = Annotated[
    bool,
    typer.Option("--probe", help="For the plan: load the weights and time 64 items."),
]
Devices = Annotated[
    int, typer.Option(min=1, metavar="N", help="For the plan: the time on so many devices too.")
]
Price = Annotated[
    float | None,
    typer.Option("--gpu-hour-price", min=0.0, help="For the plan: the price of a device's hour."),
]
PlanJson = Annotated[bool, typer.Option("--json", help="The plan as JSON.")]


@app.command("eval")
def evaluate(
    model: ModelName,
    model_arg: ModelArgs = None,
    tasks: TaskNames = None,
    suite: SuiteNames = None,
    data: Data = Path("data"),
    output_dir: OutputDir = Path("results/runs"),
    cache_dir: CacheDir = None,
    shared_cache: SharedCache = None,
    device: Device = "auto",
    batch_tokens: BatchTokens = None,
    workers: Workers = None,
    engine: EngineChoice = EngineName.local,
    compile: Compile = False,
    store_dtype: StoreDtype = "float16",
    searcher: SearcherName = "torch",
    search_memory: SearchMemory = "1G",
    split: Split = None,
    prompt_profile: Profile = "default",
    instructions: Instructions = "hash",
    seed: Seed = 0,
    limit: Limit = None,
    skip_broken: SkipBroken = False,
    compat: Compat = None,
    rerank: Rerank = None,
    rerank_arg: RerankArgs = None,
    depth: Depth = None,
    fusion_weight: FusionWeight = None,
    oracle: Oracle = False,
    overwrite_strategy: Strategy = Overwrite.only_missing,
    timings: Timings = False,
    dry_run: DryRun = False,
    probe: Probe = False,
    devices: Devices = 1,
    gpu_hour_price: Price = None,
    as_json: PlanJson = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate a model on tasks or suites, store the results and print their leaderboard.

    Only what the cache lacks is encoded; a run that was stopped goes on where it was.
    """
    from harness.encode import EngineOptions
    from harness.evaluate import EvalOptions
    from harness.evaluate import evaluate as run_evaluation
    from harness.task import Protocol

    catalog = installed()
    spec = catalog.model(model)
    chosen = _chosen(catalog, tasks, suite)
    given = options_of(model_arg)
    reranking = _reranking(catalog, rerank, rerank_arg, depth, fusion_weight, oracle)
    if instructions not in INSTRUCTIONS:
        raise UnknownName("instruction policy", instructions, INSTRUCTIONS)
    cluster = _cluster(device, workers) if engine is EngineName.ray and not dry_run else None
    device = usable_device("auto" if engine is EngineName.ray and device == "cuda" else device)
    use_caches(cache_dir, shared_cache)
    tokens, probe_budget = batch_budget(batch_tokens, cluster.device if cluster else device)
    options = EvalOptions(
        data=data,
        output_dir=output_dir,
        cache_dir=files.cache_dir(),
        shared_caches=files.shared_caches(),
        remote_caches=files.remote_caches(),
        protocol=Protocol(
            split, prompt_profile, instructions, seed, limit, skip_broken, tuple(sorted(set(words(compat))))
        ),
        engine=EngineOptions(device, tokens, workers, quiet, compile, probe_budget, store_dtype),
        searcher=searcher,
        search_memory=size_in_bytes(search_memory),
        overwrite=overwrite_strategy.value,
    )
    if dry_run:
        from harness.plan import plan as make_plan

        plans = make_plan(catalog, spec, given, chosen, options, probe=probe)
        print_plans(plans, devices, gpu_hour_price, options.cache_dir, as_json)
        return
    try:
        outcomes = run_evaluation(
            catalog, spec, given, chosen, options, reranking=reranking, remote=cluster, tell=say
        )
    except KeyboardInterrupt:
        say("interrupted: finished results and embeddings are kept; the same command goes on from there")
        raise typer.Exit(130) from None
    if timings:
        _print_timings(outcomes)
    if verbose:
        _print_files(outcomes, options)
    print_board(catalog, chosen_suites(catalog, tasks, suite, chosen), options)
    if not quiet:
        made = sum(o.fresh for o in outcomes)
        kept = sum(o.result is not None for o in outcomes) - made
        say(f"{made} results made, {kept} already there; files in {output_dir}")
    failed = [o for o in outcomes if o.error]
    if failed:
        say(f"{len(failed)} of {len(outcomes)} tasks failed: {', '.join(o.task for o in failed)}")
        raise typer.Exit(1)


def plan(**asked: Any) -> None:
    """Say what `eval` would do: what is left to encode, how long it takes, what it costs.

    Loads no weights (but for --probe). Times come from previous results of the model on the same
    device below --output-dir, else from the probe, else from a rule of thumb.
    """
    evaluate(**asked, dry_run=True)


_only_eval = ("dry_run", "timings", "overwrite_strategy", "verbose", "quiet", "oracle")
_shared = [p for n, p in inspect.signature(evaluate, eval_str=True).parameters.items() if n not in _only_eval]
plan.__signature__ = inspect.Signature(_shared)  # type: ignore[attr-defined]
plan.__annotations__ = {p.name: p.annotation for p in _shared}
app.command()(plan)


def _cluster(device: str, workers: int | None) -> Cluster:
    from harness.cluster import join

    return join(device, workers, say)


def _reranking(
    catalog: Catalog,
    name: str | None,
    given: Sequence[str] | None,
    depth: Sequence[str] | None,
    weight: Sequence[str] | None,
    oracle: bool,
) -> Reranking | None:
    if name is None:
        if given or depth or weight or oracle:
            raise HarnessError("--rerank-arg, --depth, --fusion-weight and --oracle need --rerank NAME")
        return None
    from harness.evaluate import open_reranker
    from harness.rerank import Fusion, by_task

    spec = catalog.reranker(name)
    weights = words(weight)
    tuned = [text.partition(":")[2] for text in weights if text.startswith("tune:")]
    if (tuned and len(weights) > 1) or tuned == [""]:
        raise HarnessError("--fusion-weight tune:SPLIT stands alone and names a split, such as tune:val")
    if oracle and not tuned:
        raise HarnessError("--oracle goes with --fusion-weight tune:SPLIT")
    fusion = Fusion(
        by_task("--depth", spec.depths, words(depth), int),
        by_task("--fusion-weight", spec.weights, [] if tuned else weights, float),
        tuned[0] if tuned else None,
        oracle,
    )
    return open_reranker(spec, options_of(given, "--rerank-arg"), fusion)


def _chosen(catalog: Catalog, tasks: Sequence[str] | None, suites: Sequence[str] | None) -> list[Task]:
    chosen = catalog.select(words(tasks), words(suites))
    if not chosen:
        raise HarnessError("nothing to evaluate: name tasks with --tasks or suites with --suite")
    return chosen


def _print_files(outcomes: Sequence[Outcome], options: EvalOptions) -> None:
    for outcome in outcomes:
        if outcome.result is not None:
            say(f"{outcome.task}: {options.output_dir / outcome.result.path}")


def _print_timings(outcomes: Sequence[Outcome]) -> None:
    """Seconds by stage. Decode and prepare are those of the workers, which may run beside embed."""
    from tabulate import tabulate

    made = [o.result for o in outcomes if o.result is not None and o.fresh]
    stages = list(dict.fromkeys(s for r in made for s in r.provenance.get("seconds", {})))
    rows = [
        [
            r.task,
            *(r.provenance["seconds"].get(s, 0.0) for s in stages),
            f"{100 * r.provenance.get('work', {}).get('padding', 0.0):.1f} %",
        ]
        for r in made
    ]
    say(tabulate(rows, headers=["seconds", *stages, "padding"], tablefmt="plain", floatfmt=".2f"))
