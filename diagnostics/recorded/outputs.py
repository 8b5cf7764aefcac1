"""The outputs of a model in the place of its loss: Σ_n Σ_c v_c f_c(x_n), whose gradients are those of the outputs.

An example has C outputs: everything that the model puts out for it, flattened. A sequence of T tokens with V logits
each has C = T V.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diagnostics.errors import DiagnosticsError
from diagnostics.forms import Batch, Form
from diagnostics.loss_terms import leading_dimension
from diagnostics.objective import Objective
from diagnostics.output_loss import OutputLoss

Weights = Callable[[int], Tensor]
"""v, (C,), for C outputs."""


@dataclass(frozen=True)
class OutputForm:
    """A sum of outputs as the loss: every example counts as one."""

    form: Form
    weights: Weights

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Σ_n Σ_c v_c f_c(x_n)."""
        return self.at_outputs(model, batch).loss

    def terms(self, model: nn.Module, batch: Batch) -> float:
        """Examples."""
        return leading_dimension(batch)

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """(n, C)."""
        return flattened(self.form.outputs(model, batch), int(leading_dimension(batch)))

    def at_outputs(self, model: nn.Module, batch: Batch) -> OutputLoss:
        """(n, C), and the sum."""
        outputs = self.outputs(model, batch)
        weights = self.weights(outputs.shape[1]).to(outputs)
        return OutputLoss(outputs, (outputs @ weights).sum(), None, summed=True)


def of_outputs(objective: Objective, weights: Weights) -> Objective:
    """The mean over all examples of Σ_c v_c f_c, on the batches of an Objective."""
    counts = [leading_dimension(batch) for batch in objective.batches]
    shares = [1.0 / sum(counts)] * len(counts)
    other = objective.rebatched(objective.batches, shares, counts, objective.origins)
    form = objective.form.form if isinstance(objective.form, OutputForm) else objective.form
    other.form = OutputForm(form, weights)
    return other


def at_random(count: int) -> Tensor:
    """Weights with which no two outputs are alike."""
    return torch.randn(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def unit(place: int) -> Weights:
    """Weights that leave one output."""

    def weights(count: int) -> Tensor:
        result = torch.zeros(count, dtype=torch.float64)
        result[place] = 1.0
        return result

    return weights


def flattened(outputs: Tensor, count: int) -> Tensor:
    """Outputs as (n, C).

    Raises:
        DiagnosticsError: they have no rows for n examples, or are not real numbers.
    """
    if not (outputs.ndim and outputs.numel() and outputs.shape[0] % count == 0 and outputs.is_floating_point()):
        raise DiagnosticsError(
            "the outputs are not those of single examples",
            given=f"shape {tuple(outputs.shape)} of {outputs.dtype} for {count} examples",
            expected="floating-point outputs whose leading dimension runs over the examples",
        )
    return outputs.reshape(count, -1)
