"""An optimizer's state is walked through whatever its shape, and each tensor can be followed back."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import pytest
import torch

from probes.checkpoint.state import state_tensors

ONE = torch.ones(2)


@pytest.mark.parametrize(
    ("state", "names"),
    [
        ({}, []),
        ({0: {"step": 3, "momentum_buffer": None}}, []),
        (
            {1: {"b": ONE}, 0: {"c": ONE, "a": ONE}},
            ["b of parameter 1", "c of parameter 0", "a of parameter 0"],
        ),
        ({"head.weight": {"exp_avg": ONE}}, ["exp_avg of parameter head.weight"]),
        ({0: {"old": [ONE, {"dir": (ONE,)}]}}, ["old[0] of parameter 0", "old[1].dir[0] of parameter 0"]),
        ({"step": ONE}, ["state of parameter step"]),
        (UserDict({0: {"x\n\x1b": ONE}}), ["x\\n\\x1b of parameter 0"]),
    ],
)
def test_every_tensor_in_order_by_name(state: Any, names: list[str]) -> None:
    found = list(state_tensors({"state": state, "param_groups": []}))
    assert [name for name, _ in found] == names
    assert all(tensor is ONE for _, tensor in found)


def test_what_holds_itself_or_is_very_deep_ends() -> None:
    loop: dict[str, Any] = {"exp_avg": ONE}
    loop["self"] = loop
    deep: list[Any] = [ONE]
    for _ in range(100_000):
        deep = [deep]
    names = [name for name, _ in state_tensors({"state": {0: loop, 1: {"deep": deep}}, "param_groups": []})]
    assert names[0] == "exp_avg of parameter 0"
    assert len(names) == 2
    assert len(names[1]) < 150
    # Python takes so deep a list apart by recursion of its own: undo it level by level.
    while deep and isinstance(deep[0], list):
        deep = deep.pop()
