"""What one optimizer step does to each tensor, measured on the tensors themselves.

The gradient does not tell: momentum, preconditioning, decay, clipping and fused kernels all come between. Copies are
taken just before a step that will be measured, and dropped right after it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diagnostics import DiagnosticsError, Objective
from probes.probe import TensorUpdate


class UpdateMeter:
    """Copies of what trains, from before a step that will be measured."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before: dict[str, Tensor] = {}

    def before_step(self) -> None:
        """Keep copies of the parameters that train."""
        with torch.inference_mode(False), torch.no_grad():
            self._before = {
                name: tensor.detach().clone() for name, tensor in self._model.named_parameters() if tensor.requires_grad
            }

    def forget(self) -> None:
        """Drop the copies."""
        self._before = {}

    def after_step(self) -> dict[str, TensorUpdate]:
        """The steps since, by tensor name; empty where no copies were kept."""
        now = dict(self._model.named_parameters())
        return {
            name: TensorUpdate(kept, now[name].detach())
            for name, kept in self._before.items()
            if name in now and now[name].shape == kept.shape
        }


def last_update(updates: Mapping[str, TensorUpdate], objective: Objective) -> Tensor:
    """Δ, shape (P,), of the step just taken, in the objective's order; what does not train has not moved.

    Raises:
        DiagnosticsError: there was no step yet, the check was not due before it (as the one at the end of a run may not
            be), or it moved nothing.
    """
    if not updates:
        raise DiagnosticsError("no update was kept", expected="a check that is due right after an optimizer step")
    with torch.inference_mode(False), torch.no_grad():
        update = objective.space.flatten(
            updates[name].delta() if name in updates else torch.zeros_like(tensor)
            for name, tensor in objective.space.items()
        )
    if not bool(update.any()):
        raise DiagnosticsError("the last step moved no parameter of the objective")
    return update
