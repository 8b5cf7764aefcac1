"""Gradient noise from the micro-batches of gradient accumulation.

A hook on each parameter sees the gradient of one micro-batch, once per backward pass with the sum over all uses of a
tied parameter; a second one sees what ``.grad`` holds after it was added. Both come before the loop can clip or unscale
anything, so the norms are never those of clipped gradients. Squares stay on the device until the optimizer steps.

The norm of the whole is needed once a step, after the last micro-batch; which one that is, is known from the steps
before. So n micro-batches cost n + 1 passes over the gradients once the first step is over.

Source: arXiv 1812.06162.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.utils.hooks import unserializable_hook

from diagnostics import DiagnosticsError, NoiseTracker
from diagnostics.parameters import unwrap
from diagnostics.stability.rules import unwrap_optimizer
from probes.streams.accumulation import MOST, Arrival, Before, Microbatch, step_of
from probes.streams.squares import read, squares
from probes.streams.stream import BatchSize, Stream

Reduction = Literal["mean", "sum"]


@dataclass
class _Slot:
    """What is known of a parameter between its two hooks, and from one micro-batch to the next."""

    parameter: Tensor
    hook: int = -1
    before: Before = "nothing"
    shared: bool = False
    own: list[Tensor] | None = None
    seen: tuple[int, int] | None = None


class MicrobatchStream(Stream):
    """See ``watch_microbatches``."""

    def __init__(
        self,
        parameters: Iterable[Tensor],
        optimizer: Optimizer,
        tracker: NoiseTracker,
        batch_size: BatchSize | None,
        reduction: Reduction,
        scaler: Any,
    ) -> None:
        super().__init__(tracker, batch_size, scaler)
        self.reduction = reduction
        self._optimizer: Optimizer | None = optimizer
        self._slots = [_Slot(parameter) for parameter in parameters]
        self._known = {id(tensor) for tensor in _held_by(optimizer) if tensor.requires_grad}
        self._microbatches: list[Microbatch] = []
        self._numbers: list[Tensor] = []
        self._graph = -1
        self._given_size: int | None = None
        self._whole_from: int | None = None
        # A compiled optimizer.step would trace the hooks.
        self._at_steps = [
            optimizer.register_step_pre_hook(torch.compiler.disable(partial(self._at_step, self._settle))),
            optimizer.register_step_post_hook(torch.compiler.disable(partial(self._at_step, self._clear))),
        ]
        self._on_tensors: list[Any] = []
        for place, slot in enumerate(self._slots):
            arrives = unserializable_hook(partial(self._guarded, self._arrives, place))
            handle = slot.parameter.register_hook(arrives)
            slot.hook = handle.id
            arrived = partial(self._arrived_guarded, place)
            self._on_tensors += [handle, slot.parameter.register_post_accumulate_grad_hook(arrived)]

    def size(self, examples: int) -> None:
        """Say how many examples the next backward pass has.

        Args:
            examples: of this micro-batch alone.
        """
        self._given_size = examples

    def close(self) -> None:
        """Take off all hooks, and let go of the model and the optimizer."""
        for handle in self._at_steps:
            handle.remove()
        self._let_go()

    def _let_go(self) -> None:
        for handle in self._on_tensors:
            handle.remove()
        self._on_tensors, self._slots, self._optimizer = [], [], None
        self._batch_size = self._scaler = None
        self._clear()

    def _arrived_guarded(self, place: int, _: Tensor) -> None:
        self._guarded(self._arrived, place)

    def _at_step(self, action: Any, *_: Any) -> None:
        self._guarded(action)
        if self.off is not None:
            # Hooks that are being gone through stay: those on the optimizer now, those on tensors when they failed.
            self._let_go()

    def _arrives(self, place: int, gradient: Tensor) -> None:
        """A gradient on its way to ``.grad``, or to ``torch.autograd.grad``, after which nothing arrives."""
        slot = self._slots[place]
        held = slot.parameter.grad
        if held is None:
            # What .grad will be; it is looked at once, when it is there.
            slot.before, slot.shared, slot.own = "nothing", False, None
            return
        # Gradients of DDP may be views of one buffer, which count changes together.
        slot.shared = held._is_view()
        slot.before = "ours" if not slot.shared and slot.seen == (id(held), held._version) else "unknown"
        slot.own = squares(gradient)

    def _arrived(self, place: int) -> None:
        """The gradient is part of ``.grad`` now."""
        slot = self._slots[place]
        held = slot.parameter.grad
        if held is None:
            raise DiagnosticsError("gradients are taken away as they arrive", given="an optimizer in the backward pass")
        if torch._C._current_graph_task_id() != self._graph:
            self._begin()
        if slot.before == "nothing" and any(place in one.arrivals for one in self._microbatches[:-1]):
            # Gradients were dropped without a step: what came before this micro-batch is of no use.
            self._drop_earlier()
        slot.seen = (id(held), held._version)
        now = squares(held) if slot.before != "ours" or len(self._microbatches) >= (self._whole_from or 1) else None
        own = now if slot.own is None else slot.own
        assert own is not None
        at = self._note(own)
        held_at = at if own is now else None if now is None else self._note(now)
        self._microbatches[-1].arrivals[place] = Arrival(at, held_at, slot.before, slot.shared)
        slot.own = None

    def _note(self, numbers: list[Tensor]) -> slice:
        self._numbers += numbers
        return slice(len(self._numbers) - len(numbers), len(self._numbers))

    def _begin(self) -> None:
        """A backward pass begins: a micro-batch."""
        if _inside_another():
            raise DiagnosticsError(
                "the model uses reentrant activation checkpoints, which take a backward pass to pieces",
                expected="torch.utils.checkpoint with use_reentrant=False",
            )
        self._graph = torch._C._current_graph_task_id()
        if len(self._microbatches) == MOST:
            self._microbatches, self._numbers = [], []
        size, self._given_size = self._size(self._given_size), None
        self._microbatches.append(Microbatch(size, torch._C._autograd._get_current_graph_task_keep_graph()))

    def _drop_earlier(self) -> None:
        del self._microbatches[:-1]
        if not self._microbatches[0].arrivals:
            self._numbers = []

    def _settle(self) -> None:
        """The optimizer is about to step: all micro-batches are there."""
        self._look_for_others()
        microbatches, numbers = self._microbatches, read(self._numbers)
        self._clear()
        found = step_of(microbatches, numbers)
        if len(microbatches) > 1:
            last = {place: index for index, one in enumerate(microbatches, 1) for place in one.arrivals}
            self._whole_from = min(self._whole_from or len(microbatches), *last.values())
        if isinstance(found, str):
            self.skipped[found] += 1
            return
        if self.reduction == "sum":
            shares = found.sizes / found.sizes.sum()
            self._take(found.parts / numpy.square(shares), found.whole, found.sizes, None, self._scale())
            return
        # Means that count alike: their mean has the noise of as many examples as the harmonic mean of sizes, n times.
        count = len(found.parts)
        alike = count / float((1 / found.sizes).sum())
        self._take(count**2 * found.parts, found.whole, numpy.full(count, alike), None, self._scale())

    def _look_for_others(self) -> None:
        """Whether somebody else came after us: parameters that began to train, or hooks that change gradients."""
        assert self._optimizer is not None
        for tensor in _held_by(self._optimizer):
            if tensor.grad is not None and tensor.requires_grad and id(tensor) not in self._known:
                raise DiagnosticsError("a parameter began to train after watching began", attempt="watch anew")
        for slot in self._slots:
            for key, hook in reversed((slot.parameter._backward_hooks or {}).items()):
                if key == slot.hook:
                    break
                if not isinstance(getattr(getattr(hook, "func", None), "__self__", None), MicrobatchStream):
                    raise DiagnosticsError("a hook on a parameter was registered after ours", attempt="watch after it")

    def _clear(self) -> None:
        self._microbatches, self._numbers, self._graph = [], [], -1


def watch_microbatches(
    model: nn.Module,
    optimizer: Optimizer,
    tracker: NoiseTracker,
    *,
    batch_size: BatchSize | None = None,
    reduction: Reduction = "mean",
    scaler: Any = None,
) -> MicrobatchStream:
    """Feed a tracker at each optimizer step from the gradients of its micro-batches.

    |G|² is that of the gradient which the optimizer gets: n² times that of the mean where losses are not divided by the
    number n of micro-batches. B_simple is the same either way. A micro-batch is one backward pass with examples of its
    own; hooks that were on a parameter before ours are part of its gradient. On a DDP model these are the micro-batches
    of one rank.

    Args:
        model: what trains, wrapped or not.
        optimizer: the one that steps; parameters that it does not hold are left out.
        tracker: to feed.
        batch_size: examples of a micro-batch, or a callable that is asked as its gradients arrive; None where
            ``stream.size(n)`` is called before each backward pass.
        reduction: how losses count where sizes differ: "mean" of each micro-batch, all alike; or "sum", also divided by
            a number that is the same for all micro-batches of a step.
        scaler: AMP's GradScaler, or a callable that returns the loss scale.

    Returns:
        A context manager, with ``skipped``, ``off`` and ``close()``.

    Raises:
        DiagnosticsError: arguments that do not fit; LBFGS; a sharded model. Nothing is raised later.

    Source: arXiv 1812.06162.

    Example:
        >>> model = nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        >>> tracker = NoiseTracker()
        >>> with watch_microbatches(model, optimizer, tracker, batch_size=8):
        ...     for _ in range(50):
        ...         optimizer.zero_grad()
        ...         for _ in range(4):
        ...             (model(torch.randn(8, 3)) - 1).square().mean().div(4).backward()
        ...         _ = optimizer.step()
        >>> tracker.steps
        50
    """
    if not isinstance(model, nn.Module):
        raise DiagnosticsError("model is not a module", given=type(model).__name__, expected="torch.nn.Module")
    inner = unwrap_optimizer(optimizer)
    if not isinstance(inner, Optimizer):
        raise DiagnosticsError(
            "optimizer is not a torch optimizer", given=type(optimizer).__name__, expected="torch.optim.Optimizer"
        )
    if isinstance(inner, LBFGS):
        raise DiagnosticsError(
            "LBFGS takes gradients in its own steps",
            given="LBFGS",
            expected="an optimizer that is called once gradients are there",
        )
    if reduction not in ("mean", "sum"):
        raise DiagnosticsError("reduction is unknown", given=repr(reduction), expected="'mean' or 'sum'")
    held = {id(tensor) for tensor in _held_by(inner)}
    inside = unwrap(model)
    parameters = [tensor for tensor in inside.parameters() if tensor.requires_grad and id(tensor) in held]
    if not parameters:
        raise DiagnosticsError(
            "the optimizer holds no parameter of the model that trains", expected="the model's own optimizer"
        )
    sharding = any(type(module).__name__ == "FullyShardedDataParallel" for module in inside.modules())
    if sharding or any(hasattr(tensor, "full_tensor") for tensor in parameters):
        raise DiagnosticsError("the model is sharded", given="FSDP", expected="whole parameters on each rank")
    return MicrobatchStream(parameters, inner, tracker, batch_size, reduction, scaler)


def _held_by(optimizer: Optimizer) -> Iterator[Tensor]:
    return (tensor for group in optimizer.param_groups for tensor in group["params"])


def _inside_another() -> bool:
    """Whether a backward pass runs inside a Python function's own backward, as reentrant checkpoints have it."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_name == "apply" and frame.f_code.co_filename == torch.autograd.function.__file__:
            return True
    return False
