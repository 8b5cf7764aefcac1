"""How many loss terms a batch holds: the weight that makes ragged batches average like one whole batch.

A mean loss divides by the number of its terms, so the mean over everything is the mean of batch means weighted by
that number: examples for most losses, elements for element-wise ones, unmasked (and class-weighted) labels for
cross-entropy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from diagnostics.errors import DiagnosticsError
from diagnostics.parameters import unwrap

ELEMENTWISE = (
    nn.MSELoss,
    nn.L1Loss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    nn.PoissonNLLLoss,
)

_MODULE_OF_FUNCTION: dict[Any, type[nn.Module]] = {
    F.cross_entropy: nn.CrossEntropyLoss,
    F.nll_loss: nn.NLLLoss,
    F.mse_loss: nn.MSELoss,
    F.l1_loss: nn.L1Loss,
    F.smooth_l1_loss: nn.SmoothL1Loss,
    F.huber_loss: nn.HuberLoss,
    F.binary_cross_entropy: nn.BCELoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    F.poisson_nll_loss: nn.PoissonNLLLoss,
}


def leading_dimension(batch: Any) -> float:
    """The length of the first tensor in a batch: its number of examples."""
    for leaf in tree_leaves(batch):
        if isinstance(leaf, Tensor) and leaf.ndim:
            return float(leaf.shape[0])
    raise DiagnosticsError(
        "the number of loss terms in a batch cannot be told",
        given=type(batch).__name__,
        expected="a batch that contains a tensor with a leading example dimension",
        attempt="terms=lambda batch: ... in Objective.from_loss",
    )


def pair_terms(loss: Callable[..., Tensor], targets: Any) -> float:
    """The number of terms in ``loss(outputs, targets)``.

    A loss with ``reduction="sum"`` counts one per batch: the objective is then the mean of the batch losses the
    trainer sees. A loss of the user's own, subclasses with their own ``forward`` included, counts examples.

    Example:
        >>> pair_terms(nn.CrossEntropyLoss(), torch.tensor([1, 2, -100]))
        2.0
    """
    if reduction(loss) == "sum":
        return 1.0
    loss = as_module(loss)
    if not is_stock(loss):
        return leading_dimension(targets)
    if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) and isinstance(targets, Tensor):
        if targets.is_floating_point():
            return float(targets.numel() // max(1, targets.shape[1] if targets.ndim > 1 else targets.numel()))
        kept = targets[targets != loss.ignore_index]
        return float(kept.numel()) if loss.weight is None else float(loss.weight.to(kept.device)[kept].sum())
    if isinstance(loss, ELEMENTWISE) and isinstance(targets, Tensor):
        return float(targets.numel())
    return leading_dimension(targets)


def as_module(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``F.cross_entropy``, a partial of it or what was compiled, as the module that says how it reduces."""
    if isinstance(loss, nn.Module):
        return unwrap(loss)
    loss = _uncompiled(loss)
    function, settings, arguments = loss, {}, ()
    if isinstance(loss, partial):
        function, settings, arguments = _uncompiled(loss.func), loss.keywords, loss.args
    for known, module in _MODULE_OF_FUNCTION.items():
        if function is known and not arguments:
            try:
                return module(**settings)
            except TypeError:
                # The function knows more settings than the module, such as weights of elements.
                return loss
    return loss


def _uncompiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    inner: Callable[..., Tensor] = getattr(function, "_torchdynamo_orig_callable", function)
    if inner is not function:
        # Functions of torch itself are wrapped once more.
        inner = getattr(inner, "__wrapped__", inner)
    return inner


def is_stock(loss: object) -> bool:
    """Whether a loss is a module of ``torch.nn`` that computes what its class does there.

    Subclasses that keep its forward are; those with a forward of their own may compute and average anything.

    Example:
        >>> class Halved(nn.MSELoss):
        ...     def forward(self, outputs, targets):
        ...         return 0.5 * super().forward(outputs, targets)
        >>> is_stock(nn.MSELoss()), is_stock(Halved())
        (True, False)
    """
    if not isinstance(loss, nn.Module) or "forward" in vars(loss) or loss._forward_hooks or loss._forward_pre_hooks:
        return False
    kinds = (nn.CrossEntropyLoss, nn.NLLLoss, nn.KLDivLoss, *ELEMENTWISE)
    return type(loss).__call__ is nn.Module.__call__ and any(
        isinstance(loss, kind) and type(loss).forward is kind.forward for kind in kinds
    )


def reduction(loss: Callable[..., Tensor]) -> str | None:
    """What a loss says of how it reduces; None if it says nothing.

    Example:
        >>> reduction(nn.MSELoss()), reduction(partial(F.mse_loss, reduction="sum")), reduction(lambda a, b: a.sum())
        ('mean', 'sum', None)
    """
    loss = as_module(loss)
    said = loss.keywords.get("reduction") if isinstance(loss, partial) else getattr(loss, "reduction", None)
    return said if isinstance(said, str) else None


def huggingface_terms(model: nn.Module, batch: Mapping[str, Any]) -> float:
    """Labels that are not masked with -100; causal language models never score the first position."""
    labels = batch.get("labels")
    if not isinstance(labels, Tensor):
        return leading_dimension(batch)
    if labels.is_floating_point() or labels.ndim < 2:
        return float(labels.shape[0]) if labels.is_floating_point() else float((labels != -100).sum())
    return float(torch.sum((labels[:, 1:] if shifts_labels(model) else labels) != -100))


def shifts_labels(model: nn.Module) -> bool:
    """Whether a Hugging Face model predicts each label from the positions before it."""
    # Subclasses keep the loss of the class they extend, whatever they are called.
    kinds = (kind.__name__ for kind in type(model).__mro__)
    return any(kind.endswith(("ForCausalLM", "LMHeadModel", "DoubleHeadsModel")) for kind in kinds)
