"""Self-contained HTML pages: our templates with everything inlined, and nothing fetched from anywhere."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources
from typing import Any

TEMPLATES = "templates"


def page(template: str, /, *, scripts: tuple[str, ...] = (), **values: Any) -> str:
    """One HTML page from `templates/<template>`; every value is escaped.

    `scripts` are files of the same folder, run after those of every page. The page's policy allows
    exactly them and the style, by their digests: no other script runs, and nothing is loaded.
    """
    style = _file("page.css")
    script = "\n".join(map(_file, ("page.js", *scripts)))
    policy = "; ".join(
        [
            "default-src 'none'",
            "img-src data:",
            f"script-src 'sha256-{_digest(script)}'",
            f"style-src-elem 'sha256-{_digest(style)}'",
            "style-src-attr 'unsafe-inline'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    made: str = (
        _environment().get_template(template).render(values, style=style, script=script, policy=policy)
    )
    return made


@cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("harness", TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _file(name: str) -> str:
    return (resources.files("harness") / TEMPLATES / name).read_text(encoding="utf-8").strip()


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
