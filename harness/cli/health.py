"""`harness audit` and `harness doctor`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from harness import files

from .app import app
from .shared import (
    AsJson,
    CacheDir,
    Data,
    Device,
    ModelArgs,
    ModelName,
    OutputDir,
    TaskNames,
    installed,
    options_of,
    usable_device,
    words,
)


@app.command()
def audit(
    model: ModelName,
    model_arg: ModelArgs = None,
    tasks: TaskNames = None,
    data: Data = Path("data"),
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Say whether a model's vectors can be trusted; exit status 1 where a check fails.

    The same vector in any batch, order and padding, again and in half precision; every part of an item
    counts; texts are seen whole; vectors tell items apart; the wording of an instruction matters little.
    Without --tasks on the demo's pictures, clips and captions.
    """
    import tempfile
    from dataclasses import asdict

    from harness.audit import audit as run_audit
    from harness.audit import render

    catalog = installed()
    spec, given = catalog.model(model), options_of(model_arg)
    chosen = catalog.select(words(tasks) or ["demo/*"], [])
    with tempfile.TemporaryDirectory() as scratch:
        done = run_audit(spec, given, chosen, data=data, scratch=Path(scratch), device=usable_device(device))
    if as_json:
        typer.echo(json.dumps(asdict(done), indent=2, ensure_ascii=False))
    else:
        typer.echo(render(done), nl=False)
    if done.failed:
        raise typer.Exit(1)


@app.command()
def doctor(
    data: Data = Path("data"),
    output_dir: OutputDir = Path("results/runs"),
    cache_dir: CacheDir = None,
    hub: Annotated[bool, typer.Option("--hub", help="Also ask whether the model hub answers.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what works on this machine and how to mend what does not; exit status 1 where something must be.

    Python and libraries, GPU, search, pictures and clips, disks, cache, plugins, and which suites have data.
    """
    from dataclasses import asdict

    from harness.doctor import examine

    found = list(examine(data, output_dir, cache_dir or files.cache_dir(), hub=hub))
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in found], indent=2, ensure_ascii=False))
    else:
        width = max(len(finding.name) for finding in found)
        for finding in found:
            typer.echo(f"{finding.verdict:14}  {finding.name:{width}}  {finding.detail}")
            if finding.remedy:
                typer.echo(f"{'':14}  {'':{width}}  → {finding.remedy}")
    if any(finding.verdict == "FAIL" for finding in found):
        raise typer.Exit(1)
