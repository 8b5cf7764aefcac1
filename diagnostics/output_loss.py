"""The loss as a function of the model's outputs: its curvature there, and the gradients of its terms.

Gauss-Newton, Fisher and empirical Fisher are all Jᵀ B J with J the Jacobian of the outputs in the parameters. They
differ in B alone, which this file provides as a map on tensors of the outputs' shape:

- ``hessian``: ∂²ℓ/∂f², by formula for cross-entropy: c (diag p − p pᵀ) for each label, so that logits over a vocabulary
  are never differentiated twice; by autograd for any other loss.
- ``empirical``: Σ_t c_t u_t u_tᵀ with u_t the gradient of the t-th loss term at its true label.
- ``sampled``: the same with labels drawn from what the model believes.

A batch loss is ℓ = Σ_t c_t ℓ_t. For cross-entropy a term is one label, for element-wise losses one example.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diagnostics.errors import DiagnosticsError
from diagnostics.loss_terms import ELEMENTWISE, is_stock

OutputMap = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Categorical:
    """Cross-entropy over classes.

    Attributes:
        axis: which axis of the outputs holds the classes.
        wanted: (T,) class of each label, or (T, C) what a target spreads over classes, summing to 1.
        weight: (T,) c_t, zero for labels that are ignored.
    """

    axis: int
    wanted: Tensor
    weight: Tensor

    def gives(self, loss: Tensor, outputs: Tensor) -> bool:
        """Whether Σ_t c_t ℓ_t is the loss that was computed, or the loss is another one than it was taken for."""
        rows = self.rows(outputs.detach())
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        wanted = self.wanted if self.wanted.ndim == 1 else self.wanted.to(rows)
        terms = nn.functional.cross_entropy(rows, wanted, reduction="none")
        total = (self.weight * terms.where(self.weight != 0, 0.0)).sum().to(loss.dtype)
        tolerance = max(1e-3, 4 * torch.finfo(loss.dtype).eps)
        return bool(torch.isclose(total, loss.detach(), rtol=tolerance, atol=1e-6, equal_nan=True))

    def probabilities(self, outputs: Tensor) -> Tensor:
        """(T, C)."""
        return self.rows(outputs.detach()).softmax(dim=1)

    def rows(self, outputs: Tensor) -> Tensor:
        """Outputs as (T, C)."""
        moved = outputs.movedim(self.axis, -1)
        return moved.reshape(-1, moved.shape[-1])

    def back(self, rows: Tensor, like: Tensor) -> Tensor:
        """(T, C) in the outputs' shape."""
        return rows.view(like.movedim(self.axis, -1).shape).movedim(-1, self.axis)

    def gradients(self, probabilities: Tensor, wanted: Tensor) -> Tensor:
        """(T, C): p − q for each label."""
        if wanted.ndim == 2:
            return probabilities - wanted
        result = probabilities.clone()
        result[torch.arange(len(result), device=result.device), wanted] -= 1.0
        return result


@dataclass(frozen=True)
class Elementwise:
    """A loss that treats every output by itself.

    Attributes:
        weight: c, the factor its reduction puts before each element.
        criterion: which loss.
    """

    weight: float
    criterion: nn.Module

    @classmethod
    def of(cls, criterion: object, outputs: Tensor) -> Elementwise | None:
        """For the losses whose elements are known to be summed or averaged; None for any other."""
        if not (isinstance(criterion, ELEMENTWISE) and is_stock(criterion)):
            return None
        return cls(1.0 if criterion.reduction == "sum" else 1.0 / max(1, outputs.numel()), criterion)

    def drawn(self, outputs: Tensor, uniform: Tensor) -> Tensor:
        """Gradients of the loss of each element at targets drawn from the distribution whose −log it is."""
        if isinstance(self.criterion, nn.MSELoss):
            # (f − y)² is −log of a normal density of variance ½; its gradient 2(f − y) has variance 2.
            normal: Tensor = torch.special.ndtri(uniform.clamp(1e-300, 1 - 1e-16))
            return math.sqrt(2.0) * normal.to(outputs)
        binary = self.criterion if isinstance(self.criterion, nn.BCEWithLogitsLoss) else None
        if binary is not None and binary.pos_weight is None and binary.weight is None:
            chance = torch.sigmoid(outputs.detach())
            return chance - (uniform < chance).to(chance.dtype)
        raise _not_a_likelihood(type(self.criterion).__name__)


@dataclass(frozen=True)
class OutputLoss:
    """One batch's outputs and the loss computed from them, in one graph.

    Attributes:
        outputs: what the model put out, any shape.
        loss: scalar, computed from ``outputs``.
        kind: what is known of the loss; None when autograd must find out.
        summed: whether a loss of which nothing else is known adds up its examples; it averages them otherwise.
    """

    outputs: Tensor
    loss: Tensor
    kind: Categorical | Elementwise | None
    summed: bool = False

    def hessian(self) -> OutputMap:
        """U ↦ ∂²ℓ/∂f² U, on tensors of the outputs' shape."""
        if isinstance(self.kind, Categorical):
            kind, outputs = self.kind, self.outputs.detach()
            p, weight = kind.probabilities(outputs), kind.weight[:, None]

            def by_formula(direction: Tensor) -> Tensor:
                rows = kind.rows(direction)
                return kind.back(weight * p * (rows - (p * rows).sum(dim=1, keepdim=True)), outputs)

            return by_formula
        outputs = self.outputs
        (gradient,) = torch.autograd.grad(self.loss, outputs, create_graph=True)

        def by_autograd(direction: Tensor) -> Tensor:
            if not gradient.requires_grad:
                return torch.zeros_like(outputs)
            (product,) = torch.autograd.grad(gradient, outputs, direction, retain_graph=True, materialize_grads=True)
            return product

        return by_autograd

    def empirical(self) -> OutputMap:
        """U ↦ Σ_t c_t u_t (u_t · U_t), u_t the gradient of a term at its own label."""
        if isinstance(self.kind, Categorical):
            kind = self.kind
            return self._rank_one([kind.gradients(kind.probabilities(self.outputs), kind.wanted)])
        (gradient,) = torch.autograd.grad(self.loss, self.outputs, retain_graph=True)
        return self._rank_one([_by_example(gradient / self._factor())])

    def _factor(self) -> float:
        """c, the same for every term of a loss other than cross-entropy."""
        if isinstance(self.kind, Elementwise):
            return self.kind.weight
        return 1.0 if self.summed else 1.0 / max(1, _examples(self.outputs))

    def sampled(self, samples: int, generator: torch.Generator, skip: int) -> OutputMap:
        """The same at labels drawn from what the model believes, averaged over ``samples`` draws of each.

        Args:
            samples: draws for each term.
            generator: the stream of one whole batch.
            skip: how many examples of that batch come before these: they have used up their part of the stream.
        """
        if self.kind is None:
            raise _not_a_likelihood("this loss")
        kind, outputs = self.kind, self.outputs.detach()
        p = kind.probabilities(outputs) if isinstance(kind, Categorical) else None
        rows = _by_example(outputs) if p is None else p
        # One number decides a label, and one each output of an element-wise loss.
        shape = (len(rows), samples, 1 if p is not None else rows.shape[1])
        before = skip * math.prod(shape) // max(1, _examples(outputs))
        stream = torch.rand(before + math.prod(shape), generator=generator, dtype=torch.float64)[before:]
        uniform = stream.view(shape).to(outputs.device)
        if isinstance(kind, Elementwise):
            return self._rank_one([kind.drawn(rows, uniform[:, draw]) for draw in range(samples)])
        assert p is not None
        reached = p.double().cumsum(dim=1)
        labels = [
            torch.searchsorted(reached, uniform[:, draw] * reached[:, -1:]).squeeze(1).clamp_max(p.shape[1] - 1)
            for draw in range(samples)
        ]
        return self._rank_one([kind.gradients(p, label) for label in labels])

    def _rank_one(self, gradients: list[Tensor]) -> OutputMap:
        """Each of ``gradients`` is (T, C): one row for each term."""
        kind, outputs = self.kind, self.outputs.detach()
        share = 1.0 / len(gradients)
        if isinstance(kind, Categorical):
            weight = share * kind.weight[:, None]
        else:
            weight = torch.tensor(share * self._factor(), dtype=outputs.dtype, device=outputs.device)

        def product(direction: Tensor) -> Tensor:
            rows = kind.rows(direction) if isinstance(kind, Categorical) else _by_example(direction)
            total = torch.zeros_like(rows)
            for gradient in gradients:
                total += weight * gradient * (gradient * rows).sum(dim=1, keepdim=True)
            return kind.back(total, outputs) if isinstance(kind, Categorical) else total.view_as(outputs)

        return product


def _examples(outputs: Tensor) -> int:
    return outputs.shape[0] if outputs.ndim else 1


def _by_example(outputs: Tensor) -> Tensor:
    return outputs.reshape(_examples(outputs), -1)


def _not_a_likelihood(what: str) -> DiagnosticsError:
    return DiagnosticsError(
        "labels cannot be drawn from the model",
        given=f"{what}, which is not known to be the negative logarithm of a probability",
        expected="CrossEntropyLoss, MSELoss or BCEWithLogitsLoss without pos_weight or weight",
        attempt="GaussNewton(objective), or EmpiricalFisher(objective)",
    )
