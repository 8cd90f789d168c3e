"""The command line: one module for each group of commands."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Sequence

import typer

from harness.errors import HarnessError

from . import evaluation, boards, reports, statistics, health, bench, training, listing, data, caches  # noqa: F401  # isort: skip (the order of the help)
from .app import app
from .shared import say

REPEATED = ("--model-arg", "--rerank-arg", "--set")


def main() -> None:
    """The console script: 0 done, 1 some tasks failed, 2 one clear error, 130 interrupted."""
    logging.getLogger("DeepSpeed").addFilter(_is_error)
    arguments = _normal(sys.argv[1:])
    command = typer.main.get_command(app)
    try:
        command.main(args=arguments, prog_name="harness")
    except HarnessError as error:
        say(f"harness: {error}")
        sys.exit(2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _is_error(record: logging.LogRecord) -> bool:
    """DeepSpeed, where it is installed, greets on stdout, which is for what was asked."""
    return record.levelno >= logging.ERROR


def _normal(arguments: Sequence[str]) -> list[str]:
    """`--model_arg` for `--model-arg`, and several KEY=VALUE after one flag that takes them."""
    normal: list[str] = []
    for argument in arguments:
        if match := re.match(r"--[A-Za-z][\w-]*", argument):
            argument = match.group().replace("_", "-") + argument[match.end() :]
        elif normal[-2:-1] and normal[-2] in REPEATED and re.match(r"[\w.-]+=", argument):
            normal.append(normal[-2])
        normal.append(argument)
    return normal
