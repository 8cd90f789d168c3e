"""The speed of a model is fitted to what its parts took: each is foretold, not their sum alone."""

import numpy as np
import pytest

from harness.speed import probed

TASKS = [
    [{"text": 800}, {"image": 1000}],
    [{"image": 1900}],
    [{"image,text": 2600}, {"image": 1400}],
    [{"text": 160}, {"video": 1500}],
    [{"text": 560}],
    [{"text": 40}, {"text": 30, "image": 70}],
]
PARTS = [part for task in TASKS for part in task]


def took(tokens):
    """What a part takes on a machine with 0.1 s for each, and 2,000 text tokens, 700 others a second."""
    return 0.1 + sum(n / (2000 if modality == "text" else 700) for modality, n in tokens.items())


def foretold(parts, speed):
    tokens = {m: sum(p.get(m, 0) for p in parts) for m in {m for p in parts for m in p}}
    return speed.seconds(tokens, 0, parts=len(parts), load=False)["encode"]


def fitted(parts):
    return probed(parts, load=0.0, dim=None, device="cpu")


@pytest.mark.parametrize("noise", [0.0, 0.15])
def test_each_task_is_foretold_within_a_quarter(noise):
    rng = np.random.default_rng(0)
    parts = [(part, took(part) * (1 + rng.uniform(-noise, noise))) for part in PARTS * 2]
    speed = fitted(parts)
    for task in TASKS:
        assert foretold(task, speed) == pytest.approx(sum(map(took, task)), rel=0.25)
    assert 0.05 < speed.part < 0.15


def test_one_slow_moment_does_not_spoil_the_rest():
    parts = [(part, took(part)) for part in PARTS * 2]
    parts[3] = (parts[3][0], 5 * parts[3][1])
    speed = fitted(parts)
    for task in (TASKS[0], TASKS[4], TASKS[5]):
        assert foretold(task, speed) == pytest.approx(sum(map(took, task)), rel=0.25)


def test_of_one_part_all_tokens_cost_alike():
    speed = fitted([({"text": 100, "image": 300}, 2.0)])
    assert speed.tokens == pytest.approx({"text": 200.0, "image": 200.0})
    assert speed.part == pytest.approx(0.0, abs=1e-9)


def test_a_part_never_costs_less_than_nothing():
    """Small parts that went faster than large ones."""
    speed = fitted([({"text": 10}, 0.01), ({"text": 1000}, 2.0), ({"text": 2000}, 4.0)])
    assert speed.part == 0.0
    assert 400 < speed.tokens["text"] < 1100
