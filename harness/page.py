"""Self-contained HTML pages: our templates with everything inlined, and nothing fetched from anywhere."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources
from typing import Any

TEMPLATES = "templates"


def page(name: str, /, **values: Any) -> str:
    """One HTML page from `templates/<name>.html`; every value is escaped.

    It holds the style and the script of every page, and those of its own name where there are any.
    Its policy allows exactly these, by their digests: no other script runs, and nothing is loaded.
    """
    style = "\n".join(map(_file, ("page.css", f"{name}.css")))
    script = "\n".join(map(_file, ("page.js", f"{name}.js")))
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
    template = _environment().get_template(f"{name}.html")
    made: str = template.render(values, style=style, script=script, policy=policy)
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
    """The content of a template's file; nothing where there is none."""
    file = resources.files("harness") / TEMPLATES / name
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
