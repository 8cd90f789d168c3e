"""The table of model rows in models/README.md knows every model of U-MARVEL's and LamRA's tables."""

from __future__ import annotations

import re
from pathlib import Path

from harness.registry import load_catalog

README = Path(__file__).parents[1] / "models" / "README.md"
CATALOG = load_catalog()


def rows_and_plugins() -> dict[str, set[str]]:
    """A row of the papers → the plugins named beside it."""
    section = README.read_text(encoding="utf-8").partition("## Model rows of the papers")[2]
    table = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("| ")][1:]
    found = {}
    for names, why in (line.strip("| ").split(" | ") for line in table):
        found |= {name: set(re.findall(r"`(?:--rerank )?([\w.-]+)`", why)) for name in names.split("; ")}
    return found


def test_every_model_row_has_a_plugin_or_a_reason():
    named = rows_and_plugins()
    known = {*CATALOG.models, *CATALOG.rerankers, *set[str]().union(*named.values())}
    for number in CATALOG.reported():
        if number.paper not in ("umarvel", "lamra"):
            continue
        if number.plugin is None:
            assert number.model in named, number.model
        else:
            assert set(number.plugin.split("+")) <= known, number.model


def test_the_plugins_of_the_qwen_family_that_it_names_are_registered():
    named = set[str]().union(*rows_and_plugins().values())
    family = {name for name in named if re.match(r"umarvel|lamra|gme-|vlm2vec-|qwen", name)}
    assert family <= {*CATALOG.models, *CATALOG.rerankers}
    assert {"umarvel", "lamra-rank", "vlm2vec-v2", "qwen3-vl-embedding-8b"} <= family
