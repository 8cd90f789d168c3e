"""`harness cache`."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness import files
from harness.errors import HarnessError

from .app import cache_app
from .shared import (
    GAP,
    AsJson,
    CacheDir,
    Data,
    ModelArgs,
    ModelName,
    SharedCache,
    Split,
    StoreDtype,
    TaskNames,
    installed,
    options_of,
    use_caches,
    words,
)

if TYPE_CHECKING:
    from harness.cache import Kept

SECONDS = {"h": 3600, "d": 86_400, "w": 7 * 86_400}
OfModels = Annotated[str | None, typer.Option("--model", "-m", help="Only of models of this name or glob.")]


@cache_app.command("ls")
def cache_ls(model: OfModels = None, cache_dir: CacheDir = None, as_json: AsJson = False) -> None:
    """List stores of vectors and of rerankers' scores by model, and tables of candidates."""
    from dataclasses import asdict

    from harness.cache import stores, tables
    from harness.hub import shown

    root = _root(cache_dir)
    kept = [*stores(root, model or "*"), *([] if model else tables(root))]
    if as_json:
        rows = [{**asdict(each), "place": str(each.place), "used": _day(each)} for each in kept]
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    from tabulate import tabulate

    table = [
        (
            e.kind,
            e.model or GAP,
            e.identity_id[:16],
            e.shards,
            e.rows,
            e.dim or GAP,
            shown(e.bytes),
            _day(e),
            e.note,
        )
        for e in kept
    ]
    heads = ("kind", "model", "identity_id", "shards", "rows", "dim", "size", "last use", "")
    typer.echo(tabulate(table, headers=heads, tablefmt="simple", intfmt=","))
    typer.echo(f"{root}: {len(kept)} entries, {shown(sum(e.bytes for e in kept))}")


@cache_app.command("verify")
def cache_verify(
    model: OfModels = None,
    cache_dir: CacheDir = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove the damaged shards, and nothing else.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read every row and compare checksums; name damaged shards and exit with 1 where there are any.

    What a removed shard held is encoded again when it is next wanted; so it is without --repair.
    """
    from harness.cache import verify
    from harness.store import remove

    rows: list[dict[str, Any]] = []
    for kept, faults in verify(_root(cache_dir), model or "*"):
        for manifest in faults if repair else ():
            remove(manifest)
        damaged = {str(manifest.with_suffix(".npy")): fault for manifest, fault in faults.items()}
        rows.append({"model": kept.model, "kind": kept.kind, "identity_id": kept.identity_id,
                     "shards": kept.shards, "rows": kept.rows, "damaged": damaged})  # fmt: skip
        if not as_json:
            state = f"{len(faults)} damaged" if faults else "sound"
            typer.echo(f"{kept.model} {kept.identity_id} ({kept.kind}): {kept.shards:,} shards, {state}")
            for place, fault in damaged.items():
                typer.echo(f"    {place}: {fault}" + (", removed" if repair else ""))
    if as_json:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    if any(row["damaged"] for row in rows) and not repair:
        raise typer.Exit(1)


@cache_app.command("gc")
def cache_gc(
    model: OfModels = None,
    older_than: Annotated[
        str | None, typer.Option(metavar="AGE", help="Only what was not used for 12h, 30d or 4w.")
    ] = None,
    keep_latest: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Keep the N identities of a model used last.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without, only say what would go.")] = False,
    cache_dir: CacheDir = None,
) -> None:
    """Say what can go, and with --yes remove it.

    Always what killed processes left and tables whose file is gone; of the rest what meets all of
    --model, --older-than and --keep-latest, where one is given.
    """
    from harness.cache import Rule, delete, garbage
    from harness.hub import shown

    root = _root(cache_dir)
    found = garbage(root, Rule(model, _seconds(older_than), keep_latest))
    for goes in found:
        if yes:
            delete(goes)
        typer.echo(f"{goes.place}: {shown(goes.bytes)}, {goes.why}")
    total = shown(sum(goes.bytes for goes in found))
    if not found:
        typer.echo(f"{root}: nothing to remove")
    elif yes:
        typer.echo(f"{len(found)} entries removed, {total}")
    else:
        typer.echo(f"{len(found)} entries, {total}, would go: add --yes to remove them")


@cache_app.command("push")
def cache_push(
    destination: Annotated[
        str, typer.Argument(metavar="URL_OR_FOLDER", help="The cache to copy to, such as s3://bucket/cache.")
    ],
    model: OfModels = None,
    cache_dir: CacheDir = None,
) -> None:
    """Copy finished shards to a cache that others name with --shared-cache; exit with 1 where one is damaged.

    Several may push at once; what is there already is not sent again.
    """
    from harness.cache import push, stores
    from harness.hub import shown
    from harness.remote import Remote

    root = _root(cache_dir)
    found = stores(root, model or "*")
    if not found:
        raise HarnessError(f"nothing to push: {root} has no store of model {model or '*'}")
    damaged = False
    for kept in found:
        pushed = push(kept, Remote(destination))
        typer.echo(
            f"{kept.model} {kept.identity_id} ({kept.kind}): {pushed.sent:,} shards sent,"
            f" {shown(pushed.bytes)}; {pushed.there:,} were there"
        )
        for manifest, fault in pushed.damaged.items():
            damaged = True
            typer.echo(f"    {manifest.with_suffix('.npy')}: {fault}, not sent")
    if damaged:
        raise typer.Exit(1)


@cache_app.command("export")
def cache_export(
    model: ModelName,
    out: Annotated[Path, typer.Option("--out", help="The folder to write to, one below it for each task.")],
    tasks: TaskNames = None,
    model_arg: ModelArgs = None,
    data: Data = Path("data"),
    split: Split = None,
    cache_dir: CacheDir = None,
    shared_cache: SharedCache = None,
    store_dtype: StoreDtype = "float16",
) -> None:
    """Write the cached vectors of tasks as .npy files with the ids of their rows, for other tools.

    Numpy knows bfloat16 by np.load(path).view(ml_dtypes.bfloat16).
    """
    from harness.cache import cached, export
    from harness.encode import EngineOptions
    from harness.evaluate import EvalOptions
    from harness.hub import shown
    from harness.task import Protocol

    catalog = installed()
    spec, given = catalog.model(model), options_of(model_arg)
    use_caches(cache_dir, shared_cache)
    options = EvalOptions(
        data,
        out,
        files.cache_dir(),
        Protocol(split=split),
        EngineOptions(store_dtype=store_dtype),
        shared_caches=files.shared_caches(),
        remote_caches=files.remote_caches(),
    )
    chosen = catalog.select(words(tasks), [])
    if not chosen:
        raise HarnessError("nothing to export: name tasks with --tasks")
    for task in chosen:
        folder = out / task.name.replace("/", "__")
        about = export(cached(spec, given, task, options), folder)
        size = sum(path.stat().st_size for path in folder.glob("*.npy"))
        typer.echo(
            f"{folder}: {about['queries']:,} queries, {about['candidates']:,} candidates,"
            f" {about['dim']} {about['dtype']}, {shown(size)}"
        )


def _root(cache_dir: Path | None) -> Path:
    root = cache_dir or files.cache_dir()
    if not root.is_dir():
        raise HarnessError(f"there is no cache {root}: 'harness eval' makes it, --cache-dir names another")
    return root


def _day(kept: Kept) -> str:
    return datetime.datetime.fromtimestamp(kept.used, datetime.UTC).isoformat(" ", "minutes")[:16]


def _seconds(age: str | None) -> float | None:
    if age is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([hdw])", age.strip())
    if not match:
        raise HarnessError(f"--older-than {age!r} is not an age: write 12h, 30d or 4w")
    return float(match[1]) * SECONDS[match[2]]
