"""The tensors of an optimizer's state, each under a name a person can follow back.

Most optimizers keep a flat mapping for each parameter (`exp_avg`, `exp_avg_sq`); some nest lists and mappings in it
(LBFGS its history, Shampoo its factors).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from probes.checkpoint.errors import printable

_LONGEST = 100


def state_tensors(optimizer: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Walk through an optimizer's state dict and yield each tensor of its `state` with a name.

    Args:
        optimizer: a state dict, with a mapping `state` from parameters to what is kept for them.

    >>> import torch
    >>> optimizer = {"state": {0: {"exp_avg": torch.ones(2), "history": [torch.ones(3)]}}, "param_groups": []}
    >>> [name for name, _ in state_tensors(optimizer)]
    ['exp_avg of parameter 0', 'history[0] of parameter 0']
    """
    # A stack and not recursion, and each container once: a pickle can nest deeply, and hold a dict that holds itself.
    waiting = [("", str(parameter), entry) for parameter, entry in reversed(list(optimizer["state"].items()))]
    seen: set[int] = set()
    while waiting:
        place, parameter, value = waiting.pop()
        place = place[:_LONGEST]
        if isinstance(value, Tensor):
            yield f"{printable(place) or 'state'} of parameter {printable(parameter)}", value
            continue
        if not isinstance(value, Mapping | list | tuple) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            parts = [(f"{place}.{key}".lstrip("."), parameter, part) for key, part in value.items()]
        else:
            parts = [(f"{place}[{index}]", parameter, part) for index, part in enumerate(value)]
        waiting += reversed(parts)
