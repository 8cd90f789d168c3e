"""An example plugin: colours as a model, a task and a search backend."""

from harness.hookspecs import hookimpl
from harness.task import Column, Suite
from harness_colours.model import COLOURS
from harness_colours.searcher import NUMPY
from harness_colours.task import TEXT_TO_IMAGE


@hookimpl
def harness_models():
    return [COLOURS]


@hookimpl
def harness_tasks():
    return [TEXT_TO_IMAGE]


@hookimpl
def harness_suites():
    return [Suite("colours", "Colours", (Column("T→I", "", (TEXT_TO_IMAGE.name,)),))]


@hookimpl
def harness_searchers():
    return [NUMPY]
