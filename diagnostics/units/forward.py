"""The forward passes of a model over a batch or an Objective, for whoever watches what happens inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from diagnostics.errors import DiagnosticsError
from diagnostics.objective import Objective
from diagnostics.parameters import unwrap


def forward_passes(model: nn.Module, batch: Any) -> list[Callable[[], None]]:
    """One call for each pass, on copies of batch and buffers. To be called inside ``quiet`` and ``no_grad``.

    Args:
        model: any module, out of its wrappers.
        batch: a tensor of inputs; an ``(inputs, targets)`` pair; a mapping for ``model(**batch)``; or an Objective of
            this model, whose batches are then all run.

    Raises:
        DiagnosticsError: the batch is none of these; when it is run.
    """
    if not isinstance(batch, Objective):
        return [partial(_run, model, batch)]
    if batch.model is not unwrap(model):
        raise DiagnosticsError("the objective was built on another model", given=type(model).__name__)
    return [partial(batch.evaluate, index) for index in range(len(batch.batches))]


def _run(model: nn.Module, batch: Any) -> None:
    # Copies: a model may begin with an in-place operation, and may count its calls in a buffer.
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    batch = dict(batch) if isinstance(batch, Mapping) else batch
    batch = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, batch)
    functional_call(model, buffers, *arguments_of(batch))


def arguments_of(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a model is called with for a batch that is no Objective.

    Raises:
        DiagnosticsError: the batch is nothing that can be run, or has no examples.
    """
    if isinstance(batch, Mapping):
        return (), dict(batch)
    pair = isinstance(batch, Sequence) and len(batch) == 2
    if not pair and not isinstance(batch, Tensor):
        raise DiagnosticsError(
            "batch cannot be run",
            given=type(batch).__name__,
            expected="a tensor of inputs, an (inputs, targets) pair, a mapping, or an Objective",
        )
    inputs = batch[0] if pair else batch
    if isinstance(inputs, Tensor) and not inputs.numel():
        raise DiagnosticsError("batch is empty", given=f"inputs of shape {tuple(inputs.shape)}", expected="examples")
    return (inputs,), {}
