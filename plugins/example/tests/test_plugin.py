"""The harness's own checks on this plugin's model and task."""

from harness.testing import check_model, check_task
from harness_colours.model import COLOURS
from harness_colours.task import TEXT_TO_IMAGE


def test_the_model_keeps_the_contract(tmp_path):
    check_model(COLOURS, tmp_path)


def test_the_task_keeps_the_contract(tmp_path):
    check_task(TEXT_TO_IMAGE, tmp_path)
