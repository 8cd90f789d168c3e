"""U-MARVEL's recipe at other scales."""

from __future__ import annotations

from collections.abc import Mapping

from harness.recipe import Settings

PRESETS: Mapping[str, Mapping[str, Settings]] = {}
