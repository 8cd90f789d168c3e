"""Scaled decoding, `decode=scaled`: large JPEGs are decoded at a fraction of their size, two to three times
as fast, and pixels differ by one grey level in the mean.

It stands among a model's options and is part of its identity; without it pixels are exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.errors import HarnessError
from harness.media import decoding_scaled
from harness.model import full_identity

OPTION = "decode"


@dataclass(frozen=True)
class ScaledFrontend:
    """The frontend of a model or a reranker whose pictures are decoded at a fraction."""

    name: str
    frontend: Any

    @property
    def identity(self) -> Mapping[str, str]:
        own = full_identity(self.name, self.frontend, {})
        del own["model"]
        return {"version": own.get("code", ""), **own, OPTION: "scaled"}

    def prepare(self, items: Any) -> Any:
        with decoding_scaled(self.frontend.seen_at):
            return self.frontend.prepare(items)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "frontend":  # asked for before it is there, by pickle
            raise AttributeError(name)
        return getattr(self.frontend, name)


def split(given: Mapping[str, str]) -> tuple[dict[str, str], bool]:
    """A model's options without `decode`, and whether that is `scaled`. Raises HarnessError."""
    rest = dict(given)
    decode = rest.pop(OPTION, "exact")
    if decode not in ("exact", "scaled"):
        raise HarnessError(f"option decode is exact or scaled, not {decode!r}")
    return rest, decode == "scaled"


def scaled(name: str, frontend: Any) -> Any:
    """The frontend with its pictures decoded at a fraction; raises HarnessError where it has no `seen_at`."""
    if not hasattr(frontend, "seen_at"):
        raise HarnessError(
            f"model {name!r} does not say at what size it sees pictures: leave decode=scaled out"
        )
    return ScaledFrontend(name, frontend)
