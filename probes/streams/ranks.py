"""Gradient noise from the ranks of a DDP model: each one's own gradient is the small batch, their mean the big one.

A communication hook sees the local gradients before DDP averages them, and the average after it. What it reduces, and
how, is what DDP does without a hook, bit for bit. One more all-reduce of three numbers follows the last bucket.

All ranks must go on with that small all-reduce for as long as one of them does, or they would wait for each other. So
a rank that closes its stream, or fails, says so in the next one; all see it at the same step, and it is the last.

Source: arXiv 1812.06162; Qiao et al., arXiv 2008.12260.
"""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from diagnostics import DiagnosticsError, NoiseTracker
from probes.streams.reduction import NativeReduction
from probes.streams.squares import read, squares
from probes.streams.stream import BatchSize, Stream


@dataclass
class _Norms:
    """Of one step: what the hooks collect, and the small all-reduce."""

    scale: float = 1.0
    own: list[Tensor] = field(default_factory=list)
    whole: list[Tensor] = field(default_factory=list)
    # Summed over ranks: ‖g‖² of each, 1/b of each, and how many leave.
    shared: Tensor | None = None
    work: Any = None


class RankStream(Stream):
    """See ``watch_ranks``."""

    def __init__(
        self, model: DistributedDataParallel, tracker: NoiseTracker, batch_size: BatchSize, scaler: Any
    ) -> None:
        super().__init__(tracker, batch_size, scaler)
        self._exchange: _Exchange | None = _Exchange(model, self)
        # DDP refuses hooks whose annotations are text, as ours all are.
        model.register_comm_hook(self._exchange, lambda exchange, bucket: exchange.reduce(bucket))

    def close(self) -> None:
        """Measure nothing more. The hook cannot be taken off, and goes on as DDP would without it."""
        self.settle()
        if self._exchange is not None:
            self._exchange.stream = None
        self._exchange = self._batch_size = self._scaler = None

    def settle(self) -> None:
        """Take in the last step, which otherwise is with the next one."""
        if self._exchange is not None:
            self._exchange.settle()


class _Exchange:
    """What DDP keeps for as long as it lives: the reduction, and the stream while it measures."""

    def __init__(self, model: DistributedDataParallel, stream: RankStream) -> None:
        self.stream: RankStream | None = stream
        self.reduction = NativeReduction(model)
        self.over = False
        self._model = weakref.ref(model)
        self._norms = _Norms()

    def reduce(self, bucket: Any) -> torch.futures.Future[Tensor]:
        """DDP's hook: called for one bucket after the other, on all ranks in the same order."""
        if bucket.index() == 0:
            self.settle()
            self._norms = _Norms()
            self._guarded(self._before_first)
        norms = self._norms
        self._guarded(self._look, norms.own, bucket.buffer())
        reducing = self.reduction(bucket)
        if bucket.is_last() and not self.over:
            self._share(bucket.buffer().device)
        return reducing.then(partial(self._reduced, norms))

    def settle(self) -> None:
        """Take in the step whose numbers are on their way."""
        norms, self._norms = self._norms, _Norms()
        if norms.shared is None:
            return
        try:
            norms.work.wait()
            squared, sizes, leaving = norms.shared.tolist()
        # A rank that is gone: DDP's own next all-reduce says so to the loop.
        except RuntimeError:
            squared, sizes, leaving = math.nan, math.nan, 1.0
        if leaving:
            self.over = True
            if self.stream is not None and self.stream.off is None:
                self.stream._stop("another rank has stopped measuring")
            return
        if self.stream is not None:
            world = self.reduction.world
            # DDP weighs ranks alike: their noise is that of as many examples as the harmonic mean of their sizes.
            alike = world / sizes if sizes > 0 else math.nan
            self._guarded(self._feed, squared / world, norms, alike)

    def _feed(self, small: float, norms: _Norms, alike: float) -> None:
        assert self.stream is not None
        self.stream._take(small, sum(read(norms.whole)), alike, self.reduction.world * alike, norms.scale)

    def _before_first(self) -> None:
        assert self.stream is not None
        self._norms.scale = self.stream._scale()

    def _look(self, into: list[Tensor], buffer: Tensor) -> None:
        into += squares(buffer)

    def _reduced(self, norms: _Norms, future: torch.futures.Future[Any]) -> Tensor:
        mean: Tensor = future.value()[0]
        self._guarded(self._look, norms.whole, mean)
        return mean

    def _share(self, device: torch.device) -> None:
        """The small all-reduce; who cannot say anything says that it leaves."""
        shared = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64, device=device)
        self._guarded(self._fill, shared)
        self._norms.shared = shared
        self._norms.work = distributed.all_reduce(shared, group=self.reduction.group, async_op=True)

    def _fill(self, shared: Tensor) -> None:
        assert self.stream is not None
        model = self._model()
        # Ranks without inputs left send zeros, which are no gradients.
        uneven = model is None or model._join_config.enable
        own = torch.full((), math.nan) if uneven else torch.stack(self._norms.own).double().sum()
        shared.copy_(torch.stack([own.to(shared), shared.new_tensor(1 / self.stream._size()), shared.new_zeros(())]))

    def _guarded(self, action: Any, *given: Any) -> None:
        if self.stream is not None and not self.over:
            self.stream._guarded(action, *given)


def watch_ranks(model: nn.Module, tracker: NoiseTracker, *, batch_size: BatchSize, scaler: Any = None) -> RankStream:
    """Feed a tracker at each step of a DDP model from the gradients of its ranks.

    To be called on every rank, before the first backward pass. All ranks come to the same numbers; with two of them
    those are noisy. A step is taken in with the next one, when the stream is closed, or at ``settle()``. Gradients that
    were accumulated under ``no_sync`` count as one gradient of ``batch_size`` examples in all.

    Args:
        model: the DistributedDataParallel module. Not for ``join(divide_by_initial_world_size=False)``.
        tracker: to feed.
        batch_size: examples of this rank in a step, or a callable that is asked as its gradients arrive.
        scaler: AMP's GradScaler, or a callable that returns the loss scale.

    Returns:
        A context manager, with ``skipped``, ``off`` and ``close()``.

    Raises:
        DiagnosticsError: not DDP; a communication hook is there already; one rank; sparse gradients. Nothing is raised
            later.

    Source: arXiv 2008.12260.
    """
    ddp = getattr(model, "_orig_mod", model)
    if not isinstance(ddp, DistributedDataParallel):
        raise DiagnosticsError(
            "model is not DistributedDataParallel",
            given=type(ddp).__name__,
            expected="DistributedDataParallel, whose ranks hold whole gradients",
            attempt="watch_microbatches for gradient accumulation on one rank",
        )
    if ddp._comm_hooks or ddp._get_ddp_logging_data().get("comm_hook") or ddp.mixed_precision is not None:
        raise DiagnosticsError(
            "model has a communication hook already",
            given=str(ddp._get_ddp_logging_data().get("comm_hook", "")) or "one of DDP's own",
            expected="DDP without a hook: it takes one only, and for good",
        )
    if distributed.get_world_size(ddp.process_group) < 2:
        raise DiagnosticsError("there is one rank", given="world size 1", expected="at least 2 ranks")
    if any(getattr(module, "sparse", False) is True for module in ddp.modules()):
        raise DiagnosticsError("model has sparse gradients", given="sparse=True", expected="dense gradients")
    return RankStream(ddp, tracker, batch_size, scaler)
