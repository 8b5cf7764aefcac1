"""The function whose geometry is measured: a model, a loss, fixed batches and a choice of parameters.

L(θ) = Σ_b w_b ℓ_b(θ), where ℓ_b is the loss the trainer would see on batch b and w_b the share of all loss terms
(examples, or unmasked tokens) that batch b holds. Batches are drawn once and kept, so L is a deterministic function
and ragged batches are averaged as the whole would be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from diagnostics.batches import describe, draw, is_pair_of_tensors, keep
from diagnostics.errors import DiagnosticsError
from diagnostics.forms import Batch, Form, FunctionForm, MappingForm, PairForm, scalar
from diagnostics.loss_terms import leading_dimension
from diagnostics.output_loss import OutputLoss
from diagnostics.parameters import ParameterSpace, Selection, unwrap
from diagnostics.quiet import Mode, quiet, reseed
from diagnostics.reentrant import reentrant_checkpoints_refused

T = TypeVar("T")

NO_GRAPH = "require grad"
"""In what torch says where something is to be differentiated and gradients are off."""
LossFunction = Callable[[nn.Module, Batch], Tensor]


class Objective:
    """A model, a loss and fixed batches: the scalar function that every measure differentiates.

    Args:
        model: any ``nn.Module``; ``torch.compile``, DDP and DataParallel wrappers are looked through.
        loss: callable ``loss(outputs, targets) -> scalar``, the one the trainer uses, reduction and all.
        batches: one ``(inputs, targets)`` pair of tensors, or an iterable of such pairs (a list, a DataLoader).
            Copied once, without touching the random state, and moved to the model's device.
        params: which parameters; see ``ParameterSpace``.
        mode: ``"eval"`` (default) or ``"train"``: how dropout and batch normalisation behave inside. In train mode
            the random numbers are the same on every call.
        limit: keep at most this many batches.

    Raises:
        DiagnosticsError: no batches, batches of the wrong form, an unknown mode, nothing selected.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> x, y = torch.randn(7, 2), torch.randn(7, 1)
        >>> whole = Objective(model, nn.MSELoss(), (x, y))
        >>> ragged = Objective(model, nn.MSELoss(), [(x[:5], y[:5]), (x[5:], y[5:])])
        >>> abs(whole.loss() - ragged.loss()) < 1e-6, whole.num_parameters
        (True, 3)
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], Tensor],
        batches: Iterable[Any] | tuple[Tensor, Tensor],
        *,
        params: Selection = None,
        mode: Mode = "eval",
        limit: int | None = None,
    ) -> None:
        if not callable(loss):
            raise DiagnosticsError(
                "loss cannot be called",
                given=type(loss).__name__,
                expected="a callable loss(outputs, targets) -> scalar tensor",
                attempt="nn.CrossEntropyLoss(), or Objective.from_loss(model, loss_fn, batches)",
            )

        drawn = draw([batches] if is_pair_of_tensors(batches) else batches, limit)
        for index, batch in enumerate(drawn):
            if not (isinstance(batch, Sequence) and len(batch) == 2):
                raise DiagnosticsError(
                    f"batches[{index}] is not an (inputs, targets) pair",
                    given=describe(batch),
                    expected="a pair, as a DataLoader over (inputs, targets) yields",
                    attempt="Objective.from_loss(model, loss_fn, batches) for batches of any form",
                )
        self._set_up(model, PairForm(loss), drawn, params, mode)

    @classmethod
    def from_loss(
        cls,
        model: nn.Module,
        loss_fn: LossFunction,
        batches: Iterable[Any],
        *,
        terms: Callable[[Batch], float] = leading_dimension,
        params: Selection = None,
        mode: Mode = "eval",
        limit: int | None = None,
    ) -> Objective:
        """An Objective from ``loss_fn(model, batch) -> mean loss``, for batches of any form.

        Args:
            model: as for the class.
            loss_fn: returns the mean loss of one batch as a scalar tensor; must call the model it is handed.
            batches: an iterable of whatever ``loss_fn`` takes.
            terms: how many loss terms a batch holds; the length of its first tensor unless told otherwise.
            params: as for the class.
            mode: as for the class.
            limit: as for the class.

        Example:
            >>> model = nn.Linear(2, 1)
            >>> data = [torch.randn(4, 2), torch.randn(3, 2)]
            >>> Objective.from_loss(model, lambda m, x: m(x).square().mean(), data).terms
            (4.0, 3.0)
        """
        self = cls.__new__(cls)
        self._set_up(model, FunctionForm(loss_fn, terms), draw(batches, limit), params, mode)
        return self

    @classmethod
    def huggingface(
        cls,
        model: nn.Module,
        batches: Iterable[Mapping[str, Any]],
        *,
        params: Selection = None,
        mode: Mode = "eval",
        limit: int | None = None,
    ) -> Objective:
        """An Objective from a Hugging Face model and dict batches with labels: ``model(**batch).loss``.

        A batch counts by its labels that are not ``-100`` (shifted by one for causal language models).
        """
        drawn = draw([batches] if isinstance(batches, Mapping) else batches, limit)
        for index, batch in enumerate(drawn):
            if not isinstance(batch, Mapping):
                raise DiagnosticsError(
                    f"batches[{index}] is not a mapping", given=describe(batch), expected="a dict for model(**batch)"
                )
        self = cls.__new__(cls)
        self._set_up(model, MappingForm(), drawn, params, mode)
        return self

    def _set_up(self, model: nn.Module, form: Form, drawn: list[Batch], params: Selection, mode: Mode) -> None:
        if not isinstance(model, nn.Module):
            raise DiagnosticsError("model is not a module", given=type(model).__name__, expected="an nn.Module")
        if mode not in ("eval", "train"):
            raise DiagnosticsError("mode is unknown", given=repr(mode), expected="'eval' or 'train'")
        self.model = unwrap(model)
        self.mode: Mode = mode
        self.space = ParameterSpace(self.model, params)
        self.batches: tuple[Batch, ...] = tuple(keep(batch, self.space.device) for batch in drawn)
        self.form = form
        self.terms: tuple[float, ...] = tuple(self.count_terms(batch) for batch in self.batches)
        total = sum(self.terms)
        if not (total > 0 and math.isfinite(total)):
            raise DiagnosticsError(
                "the batches hold no loss terms",
                given=f"{len(self.batches)} batches with {total:g} terms",
                expected="at least one example (or unmasked label)",
            )
        self.weights: tuple[float, ...] = tuple(count / total for count in self.terms)
        self.origins: tuple[tuple[int, int], ...] = tuple((index, 0) for index in range(len(self.batches)))
        """Which batch each batch was cut from, and its first example there."""
        self._stage = _Stage(self.model)
        self._unreached: set[int] = set()
        self._differentiated: set[int] = set()
        self._derives = False
        self.verified_routes: dict[str, float] = {}
        """Routes that have been seen to agree with central differences on this model, and the rounding seen there."""

    @property
    def num_parameters(self) -> int:
        """P, the number of selected parameters."""
        return self.space.total

    @property
    def description(self) -> str:
        """The data and mode every number from this Objective rests on, in one line."""
        count = sum(self.terms)
        batches = f"{len(self.batches)} batches" if len(self.batches) > 1 else "one batch"
        return f"{count:,.0f} loss term{'' if count == 1 else 's'} in {batches}, {self.mode} mode"

    def batch_loss(self, index: int, values: Sequence[Tensor]) -> Tensor:
        """ℓ_b at the given parameter values, differentiable in them. To be called inside ``quiet``.

        Where gradients are off it is a constant; a loss that takes derivatives of the model itself has them all the
        same, as those of differential equations, gradient penalties and force fields do.

        Args:
            index: which batch.
            values: one tensor per selected parameter.
        """

        def lost(at: Sequence[Tensor]) -> Tensor:
            return self.placed(at, lambda: self.loss_in_place(self.fresh(index)))

        if torch.is_grad_enabled():
            return lost(values)
        if not self._derives:
            try:
                return lost(values)
            except RuntimeError as problem:
                if NO_GRAPH not in str(problem):
                    raise
        with torch.enable_grad():
            result = lost([value.detach().requires_grad_() for value in values]).detach()
        self._derives = True
        return result

    def loss_in_place(self, batch: Batch) -> Tensor:
        """The loss of the model with the tensors that it has at the moment. To be called inside ``placed``."""
        return scalar(self.form.loss(self.model, batch))

    def batch_outputs(self, index: int, values: Sequence[Tensor]) -> OutputLoss:
        """The model's outputs on a batch with ℓ_b computed from them, in one graph. To be called inside ``quiet``.

        Raises:
            DiagnosticsError: the outputs cannot be seen, as in an Objective made with ``from_loss``.
        """
        batch = self.fresh(index)
        return self.placed(values, lambda: self.form.at_outputs(self.model, batch))

    def fresh(self, index: int, copied: bool = True) -> Batch:
        """A batch as it was drawn, and the random state that goes with it. To be called inside ``quiet``.

        Args:
            index: which batch.
            copied: False only for models that have been seen not to write into what they are given.
        """
        # The same numbers for dropout on every call, whatever was drawn before.
        reseed(index)
        if not copied:
            return self.batches[index]
        # Models may begin with an in-place operation: hand out a copy, keep the batch.
        return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, self.batches[index])

    def batch_gradient(
        self, index: int, leaves: Sequence[Tensor], create_graph: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """ℓ_b at the leaves and its gradients in them, zero where it does not reach. To be called inside ``quiet``."""
        known = index in self._differentiated
        # What reaches the loss around the model, as in a closure over its parameters, would pass for a constant.
        live = [] if known else [tensor for tensor in self.space.tensors if tensor.requires_grad]

        def differentiated() -> tuple[Tensor, tuple[Tensor, ...]]:
            loss = self.batch_loss(index, leaves)
            parts: list[Tensor | None] = [None] * len(leaves)
            if loss.requires_grad:
                found = torch.autograd.grad(loss, [*leaves, *live], create_graph=create_graph, allow_unused=True)
                parts = list(found[: len(leaves)])
                if any(part is not None for part in found[len(leaves) :]):
                    raise DiagnosticsError(
                        "the loss reaches the model's parameters other than through the model it is handed",
                        given="parameters or a module held in a closure, a list or an attribute of their own",
                        expected="a loss computed from the model that is handed in",
                        attempt="model.parameters() inside loss_fn, of the model that loss_fn is given",
                    )
            if all(part is None for part in parts):
                self.unreached(index)
            return loss, tuple(
                torch.zeros_like(leaf) if part is None else part for leaf, part in zip(leaves, parts, strict=True)
            )

        if known:
            return self.placed(leaves, differentiated)
        with reentrant_checkpoints_refused():
            result = self.placed(leaves, differentiated)
        self._differentiated.add(index)
        return result

    def require_differentiable(self, leaves: Sequence[Tensor]) -> None:
        """Take the gradient of every batch whose gradient has never been taken. To be called inside ``quiet``.

        Raises:
            DiagnosticsError: part of the model is out of reach of ``torch.autograd.grad``.
        """
        for index, weight in enumerate(self.weights):
            if weight and index not in self._differentiated:
                self.batch_gradient(index, leaves)

    def unreached(self, index: int) -> None:
        """Note that a batch's loss depends on no selected parameter; some may not, as with mixtures of experts.

        Raises:
            DiagnosticsError: none of the batches does.
        """
        self._unreached.add(index)
        if all(batch in self._unreached for batch, weight in enumerate(self.weights) if weight):
            raise DiagnosticsError(
                "the loss does not depend on any selected parameter",
                given=f"{len(self.space.names)} parameters, first {self.space.names[0]!r}",
                expected="a loss computed from the model that is handed in, without no_grad or detach",
            )

    def placed(self, values: Sequence[Tensor], action: Callable[[], T]) -> T:
        """Run ``action`` with ``values`` in the place of the selected parameters and copies in that of the buffers.

        Whoever differentiates does so in here: checkpointed segments of the model run again during the backward pass,
        and would otherwise run at the live parameters.
        """
        state = {f"model.{name}": as_constant(tensor) for name, tensor in self.model.named_parameters()}
        state.update({f"model.{name}": buffer.clone() for name, buffer in self.model.named_buffers()})
        state.update({f"model.{name}": value for name, value in zip(self.space.names, values, strict=True)})
        _PLACED[self.model] = _PLACED.get(self.model, 0) + 1
        try:
            result: T = functional_call(self._stage, state, (action,))
        finally:
            _PLACED[self.model] -= 1
        return result

    def surroundings(self) -> tuple[float, ...] | None:
        """A fingerprint of what L depends on beside θ: it changes when a frozen parameter or a buffer is written to.

        None while other tensors are in the place of the model's own (``placed``), and nothing can be said.
        """
        if _PLACED.get(self.model):
            return None
        selected = {id(tensor) for tensor in self.space.tensors}
        others = [tensor for tensor in (*self.model.parameters(), *self.model.buffers()) if id(tensor) not in selected]
        # Sums as well as versions: what is written through ``.data`` is not counted there.
        return tuple(
            number
            for tensor in others
            for number in (
                tensor.data_ptr(),
                0 if tensor.is_inference() else tensor._version,
                0.0 if tensor.is_complex() else float(tensor.detach().sum(dtype=torch.float64)),
            )
        )

    def evaluate(self, index: int) -> None:
        """Run the model and the loss on one batch, for whoever watches the forward pass. To be called inside
        ``quiet``.
        """
        with torch.no_grad():
            self.batch_loss(index, self.space.values())

    def loss(self) -> float:
        """L(θ) at the model's parameters as they are now.

        Example:
            >>> Objective(nn.Linear(1, 1), nn.MSELoss(), (torch.zeros(3, 1), torch.zeros(3, 1))).loss() >= 0
            True
        """
        return self.loss_at(self.space.values())

    def loss_at(self, values: Sequence[Tensor]) -> float:
        """L at the given parameter values (one tensor per selected parameter)."""
        losses = self.batch_losses(values)
        return sum(weight * loss for weight, loss in zip(self.weights, losses, strict=True) if weight)

    def batch_losses(self, values: Sequence[Tensor]) -> list[float]:
        """ℓ_b of every batch that counts, and 0 for the others."""
        with quiet(self.model, self.mode), torch.no_grad():
            return [
                float(self.batch_loss(index, values)) if weight else 0.0 for index, weight in enumerate(self.weights)
            ]

    def gradient(self) -> Tensor:
        """∇L(θ), shape (P,), at the model's parameters as they are now; zero where the loss does not reach."""
        return self.loss_and_gradient(self.space.values())[1]

    def loss_and_gradient(self, values: Sequence[Tensor]) -> tuple[float, Tensor]:
        """L and ∇L, shape (P,), at the given parameter values (one tensor per selected parameter)."""
        loss = 0.0
        gradient = torch.zeros(self.space.total, dtype=self.space.dtype, device=self.space.device)
        for index, weight in enumerate(self.weights):
            if weight:
                batch_loss, parts = self.batch_loss_and_gradient(index, values)
                loss += weight * batch_loss
                gradient.add_(self.space.flatten(parts), alpha=weight)
        return loss, gradient

    def batch_loss_and_gradient(self, index: int, values: Sequence[Tensor]) -> tuple[float, tuple[Tensor, ...]]:
        """ℓ_b and its gradient, one tensor per selected parameter."""
        with quiet(self.model, self.mode):
            loss, parts = self.batch_gradient(index, [value.detach().requires_grad_() for value in values])
        return float(loss.detach()), parts

    def narrowed(self, params: Selection) -> Objective:
        """The same function of other parameters of the same model."""
        other = copy(self)
        other.space = ParameterSpace(self.model, params)
        other.verified_routes, other._unreached, other._differentiated = {}, set(), set()
        return other

    def count_terms(self, batch: Batch) -> float:
        """How many loss terms a batch holds."""
        return float(self.form.terms(self.model, batch))

    def rebatched(
        self,
        batches: Sequence[Batch],
        weights: Sequence[float],
        terms: Sequence[float],
        origins: Sequence[tuple[int, int]],
    ) -> Objective:
        """Another sum over other batches: Σ w_b ℓ_b with the weights given."""
        other = copy(self)
        other.origins = tuple(origins)
        other.batches, other.weights, other.terms = tuple(batches), tuple(weights), tuple(terms)
        other.verified_routes, other._unreached, other._differentiated = {}, set(), set()
        return other


_PLACED: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""How many times over a model's tensors are replaced at the moment."""


class _Stage(nn.Module):
    """A module around the model, so that ``functional_call`` swaps its tensors for all that an action does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, action: Callable[[], T]) -> T:
        return action()


def as_constant(tensor: Tensor) -> Tensor:
    """The tensor as a constant; one made under inference mode cannot take part in autograd and is copied."""
    return tensor.clone() if tensor.is_inference() else tensor.detach()
