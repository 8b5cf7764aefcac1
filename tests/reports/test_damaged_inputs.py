"""Two hundred damaged checkpoints and run folders end in a code that says so and one message, and none runs code.

``python -m benchmarks.damaged_inputs 10000`` does the same with as many as there is time for.
"""

from __future__ import annotations

import pytest

from benchmarks.damage import Damage
from benchmarks.damaged_inputs import PAGES, problem_with

EACH = 20


@pytest.fixture(scope="module")
def damage(tmp_path_factory: pytest.TempPathFactory) -> Damage:
    return Damage(tmp_path_factory.mktemp("damaged"))


@pytest.mark.parametrize("part", range(10))
def test_damage_ends_in_a_message(part: int, damage: Damage) -> None:
    # Pages take a second each; of those the benchmark makes enough.
    seeds = [seed for seed in range(part * EACH, (part + 1) * EACH) if seed % PAGES]
    problems = {seed: problem for seed in seeds if (problem := problem_with(damage, seed)[1])}
    assert problems == {}


def test_the_whole_files_are_well(damage: Damage) -> None:
    """The control: nothing is wrong with what the cases are made of, so that each is about its damage."""
    from reports.command_line import main

    for name in ("zip.pt", "legacy.pt", "weights.safetensors", "run"):
        assert main([str(damage.folder / "whole" / name)]) == 0, name
