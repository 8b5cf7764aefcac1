"""What one optimizer step does to each tensor, measured on the tensors themselves.

The gradient does not tell: momentum, preconditioning, decay, clipping and fused kernels all come between. Copies are
taken just before a step that will be measured, and dropped right after it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
