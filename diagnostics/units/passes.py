"""Forward passes for whoever watches them: over a batch that is handed in, or over those of an Objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from diagnostics.errors import DiagnosticsError
from diagnostics.objective import Objective


def passes(model: nn.Module, batch: Any) -> list[Callable[[], None]]:
    """One call for each batch, which runs the model on it and leaves model and batch as they are.

    Args:
        model: out of any wrapper.
        batch: a tensor of inputs; an ``(inputs, targets)`` pair; a mapping for ``model(**batch)``; or an Objective of
            this model, whose batches are then all run, with its loss.

    Raises:
        DiagnosticsError: the objective is of another model; when called: the batch cannot be run.
    """
    if not isinstance(batch, Objective):
        return [partial(_run, model, batch)]
    if batch.model is not model:
        raise DiagnosticsError("the objective was built on another model", given=type(model).__name__)
    return [partial(batch.evaluate, index) for index in range(len(batch.batches))]


def _run(model: nn.Module, batch: Any) -> None:
    # Copies: a model may begin with an in-place operation, and may count its calls in a buffer.
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    batch = dict(batch) if isinstance(batch, Mapping) else batch
    batch = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, batch)
    if isinstance(batch, Mapping):
        functional_call(model, buffers, (), dict(batch))
    elif isinstance(batch, Tensor):
        functional_call(model, buffers, (batch,))
    elif isinstance(batch, Sequence) and len(batch) == 2:
        functional_call(model, buffers, (batch[0],))
    else:
        raise DiagnosticsError(
            "batch cannot be run",
            given=type(batch).__name__,
            expected="a tensor of inputs, an (inputs, targets) pair, a mapping, or an Objective",
        )
