"""The loss of every example, scaled such that their mean is L.

An example is a row along the leading dimension of a batch, and its loss N w_b s_i ℓ_i: ℓ_i the loss of the example
alone, w_b the weight of its batch, s_i its share there (see ``recorded.examples``). A sentence with more labels counts
for more, as it does in training.

Where the loss is known as a function of the outputs, one forward pass of a batch holds all of them: its terms are added
up by example in place of over the batch. Any other loss is mapped over the examples, or taken one by one where that
cannot be done. What comes out is held against the loss of the batch, and two examples against themselves alone.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from copy import copy
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten, tree_unflatten

from diagnostics.arguments import require_objective
from diagnostics.batches import describe
from diagnostics.errors import DiagnosticsError
from diagnostics.forms import Batch, scalar
from diagnostics.loss_terms import leading_dimension
from diagnostics.microbatch import slack_of
from diagnostics.minibatches import Minibatches
from diagnostics.objective import NO_GRAPH, Objective
from diagnostics.output_loss import Categorical, Elementwise, OutputLoss
from diagnostics.quiet import quiet, reseed
from diagnostics.recorded.examples import known_sum, lengths, remedy, require_uncoupled, rows, shares, some

TOGETHER = 256
"""Examples that a loss is mapped over at once: the memory of a batch of so many."""


def per_example_losses(objective: Objective, values: Sequence[Tensor] | None = None) -> Tensor:
    """The loss of every example, (N,), in float64, in the order of the examples in the batches; their mean is L.

    Args:
        objective: the loss, a mean or a sum over examples.
        values: parameters to take it at, one tensor for each selected parameter; those of the model by default.

    Raises:
        DiagnosticsError: batch normalisation, dropout or the loss couples the examples; a loss that is not finite;
            values that are not the parameters'.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> x, y = torch.tensor([[1.0], [2.0], [3.0]]), torch.zeros(3, 1)
        >>> objective = Objective(model, torch.nn.MSELoss(), [(x[:2], y[:2]), (x[2:], y[2:])])
        >>> [round(loss, 6) for loss in per_example_losses(objective).tolist()]
        [1.0, 4.0, 9.0]
    """
    require_objective(objective)
    require_uncoupled(objective)
    at = _checked(objective, values)
    counts = lengths(objective)
    result = torch.zeros(sum(counts), dtype=torch.float64, device=objective.space.device)
    first = 0
    with quiet(objective.model, objective.mode), torch.no_grad():
        for index, (weight, count) in enumerate(zip(objective.weights, counts, strict=True)):
            if weight:
                parts = _Batch(objective, index, at).contributions()
                result[first : first + count] = len(result) * weight * parts
            first += count
    return result


class _Batch:
    """One batch, whose loss is taken apart in whichever way agrees with it."""

    def __init__(self, objective: Objective, index: int, values: Sequence[Tensor]) -> None:
        self.objective, self.index, self.values = objective, index, values
        self.length = int(leading_dimension(objective.batches[index]))

    def contributions(self) -> Tensor:
        """s_i ℓ_i, (n,): their sum is the loss of the batch.

        Raises:
            DiagnosticsError: the loss is not made of the losses of examples, or not finite.
        """
        seen = self._at_outputs()
        whole = self.objective.batch_loss(self.index, self.values) if seen is None else seen.loss
        if not math.isfinite(float(whole)):
            raise DiagnosticsError(
                f"the loss of batch {self.index} is not finite",
                given=f"{float(whole):g}",
                expected="finite parameters, data and loss",
            )
        parts = None if seen is None else _of_terms(seen, self.objective.batches[self.index], self.length)
        if parts is not None and self._adds_up(parts, whole) and self._terms_are_alone(parts):
            return parts
        mapped = self._mapped()
        parts = None if mapped is None else self._weighted(mapped, whole)
        if mapped is not None and parts is not None:
            places = _largest(parts)
            if self._are_alone(places, mapped[places].tolist()):
                return parts
        singles = [self._alone(self._singles, place).double() for place in range(self.length)]
        parts = self._weighted(torch.stack(singles), whole)
        if parts is None:
            raise DiagnosticsError(
                f"the loss of batch {self.index} is not made of the losses of its examples",
                given=f"{float(whole):.6g}, in {self.objective.mode} mode",
                expected="a loss that is a mean or a sum over examples, each by itself",
                attempt=remedy(self.objective),
            )
        return parts

    @cached_property
    def _singles(self) -> Objective:
        """Every example as a batch of its own."""
        return some(self.objective, self.index, [[place] for place in range(self.length)])

    def _at_outputs(self) -> OutputLoss | None:
        """Outputs and loss in one, where the outputs can be seen."""
        try:
            return self.objective.batch_outputs(self.index, self.values)
        except DiagnosticsError:
            return None
        except RuntimeError as problem:
            if NO_GRAPH not in str(problem):
                raise
            return None

    def _mapped(self) -> Tensor | None:
        """ℓ_i, (n,), by mapping the loss over the examples; None where this model or loss cannot be mapped."""
        leaves, structure = tree_flatten(self.objective.batches[self.index])
        along = [isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == self.length for leaf in leaves]

        def one(*example: Tensor) -> Tensor:
            given = iter(example)
            filled = [next(given).unsqueeze(0) if is_row else leaf for leaf, is_row in zip(leaves, along, strict=True)]
            return scalar(self.objective.form.loss(self.objective.model, tree_unflatten(filled, structure)))

        # Models may begin with an in-place operation.
        examples = [leaf.clone() for leaf, is_row in zip(leaves, along, strict=True) if is_row]
        reseed(self.index)
        try:
            with warnings.catch_warnings():
                # Operations without a batching rule are looped over, which is what would be done otherwise.
                warnings.filterwarnings("ignore", message=".*performance drop.*")
                mapped = torch.func.vmap(one, chunk_size=TOGETHER)
                return self.objective.placed(self.values, lambda: mapped(*examples)).double()
        # A model may raise anything under vmap; run by themselves, its examples show whatever is really wrong.
        except Exception as problem:
            if isinstance(problem, torch.OutOfMemoryError):
                raise
            return None

    def _alone(self, single: Objective, place: int) -> Tensor:
        """ℓ_i of an example run by itself; NaN for one without a term, whatever the loss makes of it."""
        if not single.terms[place]:
            return torch.tensor(math.nan, device=single.space.device)
        try:
            return single.batch_loss(place, self.values)
        except (RuntimeError, ValueError, TypeError, IndexError) as problem:
            if isinstance(problem, DiagnosticsError | torch.OutOfMemoryError):
                raise
            raise DiagnosticsError(
                "the loss of an example alone cannot be computed",
                given=f"batch {self.index}; {type(problem).__name__}: {problem}",
                expected="a loss that is a mean or a sum over examples, each by itself",
            ) from problem

    def _weighted(self, alone: Tensor, whole: Tensor) -> Tensor | None:
        """s_i ℓ_i from ℓ_i: shares of a mean or parts of a sum, whichever makes up the loss of the batch."""
        known = known_sum(self.objective)
        fitting: list[Tensor] = []
        for summed in (False, True) if known is None else (known,):
            weights = torch.tensor(shares(self._singles.terms, summed), dtype=torch.float64, device=alone.device)
            parts = (weights * alone).where(weights > 0, 0.0)
            if self._adds_up(parts, whole):
                fitting.append(parts)
        if len(fitting) > 1 and not torch.equal(*fitting):
            # Losses that are nearly zero, or cancel, do not tell which; at parameters moved at random they do.
            return fitting[int(Minibatches(self.objective, 1).summed)]
        return fitting[0] if fitting else None

    def _adds_up(self, parts: Tensor, whole: Tensor) -> bool:
        size = float(parts.abs().sum())
        return abs(float(parts.sum()) - float(whole)) <= slack_of(self.objective, whole, size)

    def _terms_are_alone(self, parts: Tensor) -> bool:
        """The same, of losses that were added up from terms: s_i ℓ_i are known, and s_i from how terms are counted."""
        places = _largest(parts)
        batch = self.objective.batches[self.index]
        total = 1.0 if known_sum(self.objective) else self.objective.count_terms(batch)
        counts = [self.objective.count_terms(rows(batch, [place])) for place in places]
        if not all(counts):
            return False
        return self._are_alone(places, [float(parts[at]) * total / n for at, n in zip(places, counts, strict=True)])

    def _are_alone(self, places: Sequence[int], losses: Sequence[float]) -> bool:
        """Whether these examples have these losses when each is run by itself."""
        if not places:
            return True
        single = some(self.objective, self.index, [[place] for place in places])
        alone = [self._alone(single, at) for at in range(len(places))]
        return all(
            abs(found - float(one)) <= slack_of(self.objective, one, max(abs(found), abs(float(one))))
            for found, one in zip(losses, alone, strict=True)
        )


def _largest(parts: Tensor) -> list[int]:
    """The two examples that have most to say; those without a loss say nothing."""
    found: list[int] = parts.abs().topk(min(2, len(parts))).indices.tolist()
    return [place for place in found if parts[place]]


def _of_terms(seen: OutputLoss, batch: Batch, length: int) -> Tensor | None:
    """s_i ℓ_i, (n,), from the terms of a loss that is known; None where they cannot be told apart by example."""
    outputs = seen.outputs
    precise = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    if isinstance(seen.kind, Categorical):
        kind = seen.kind
        logits = kind.rows(precise)
        wanted = kind.wanted if kind.wanted.ndim == 1 else kind.wanted.to(logits)
        terms = kind.weight * F.cross_entropy(logits, wanted, reduction="none").where(kind.weight != 0, 0.0)
    elif isinstance(seen.kind, Elementwise):
        criterion = copy(seen.kind.criterion)
        vars(criterion)["reduction"] = "none"
        targets = batch["labels"] if isinstance(batch, Mapping) else batch[1]
        together = precise.reshape(targets.shape) if isinstance(batch, Mapping) else precise
        terms = seen.kind.weight * criterion(together, targets.to(together))
    else:
        return None
    if outputs.ndim < 1 or outputs.shape[0] != length or terms.numel() % length:
        return None
    return terms.double().reshape(length, -1).sum(1)


def _checked(objective: Objective, values: Sequence[Tensor] | None) -> Sequence[Tensor]:
    if values is None:
        return objective.space.values()
    wanted = [tuple(tensor.shape) for tensor in objective.space.tensors]
    if not isinstance(values, Sequence) or [getattr(value, "shape", None) for value in values] != wanted:
        raise DiagnosticsError(
            "values are not those of the parameters",
            given=describe(values),
            expected=f"{len(wanted)} tensors, of the shapes of the selected parameters",
            attempt="objective.space.unflatten(vector) for a vector (P,)",
        )
    return values
