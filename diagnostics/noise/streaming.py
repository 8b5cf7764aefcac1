"""The noise scale along a run, from norms that training makes anyway: ranks, micro-batches, single examples.

Steps are gathered in blocks, and the jackknife leaves out a block at a time. There are at most ``BLOCKS`` of them: when
they are full, neighbours are joined. With a decay below 1 older blocks weigh less, and blocks are no longer than a
tenth of the average's memory; what is older than all of them is joined to the oldest. So memory and cost stay small, a
plain average is one with decay 1, and steps that depend on their neighbours make intervals wider, not wrong.

An exponential average follows a noise scale that drifts, as it does while the loss falls; it has the interval of about
(1 + decay)/(1 − decay) steps.

Source: arXiv 1812.06162; ranks and micro-batches as the two batch sizes: Qiao et al., arXiv 2008.12260.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy
from numpy.typing import ArrayLike

from diagnostics.arguments import real_number, whole_number
from diagnostics.averages import Draws
from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate
from diagnostics.noise.estimators import GradientNoise, noise_of_blocks, numbers_of, unbiased_pair

BLOCKS = 64
"""Held at most; after joining there are half as many, enough for the jackknife."""

SHARE = 0.1
"""Of an exponential average's memory that one block may be long."""


SHORTEST = 0.9
"""Decays below it leave too few steps for an interval: at .5 one of 95 % covers in 86 % of runs."""


class NoiseTracker:
    """Running |G|², tr Σ and B_simple.

    Feed it one pair of norms per optimizer step, with all of the ranks' norms of a step in one call: in DDP gather
    them, or all-reduce their mean and pass ``big_size``. Norms must be of gradients before clipping and before the
    step; for AMP pass the loss scale.

    Args:
        decay: of the average per step, from .9 to 1, which is the plain average over all steps. The default remembers
            about a hundred steps.

    Raises:
        DiagnosticsError: decay out of range.

    Source: arXiv 1812.06162.

    Example:
        >>> tracker, random = NoiseTracker(decay=1.0), numpy.random.default_rng(0)
        >>> for step in range(400):
        ...     ranks = random.normal(1.0, 2.0, (4, 16, 3)).mean(1)  # four ranks, 16 examples each: B_simple = 4
        ...     tracker.update(numpy.square(ranks).sum(1), numpy.square(ranks.mean(0)).sum(), small_size=16)
        >>> print(tracker.simple)
        4.0 ± 0.1
    """

    def __init__(self, decay: float = 0.99) -> None:
        expected = f"a number from {SHORTEST} to 1, as 0.99"
        self.decay = real_number("decay is out of range", decay, expected, lambda value: SHORTEST <= value <= 1)
        self.steps = 0
        self.skipped = 0
        # Rows: steps in the block, and sums of weights, of weighted |G|², of weighted tr Σ; the oldest block first.
        self._blocks: Draws = numpy.zeros((0, 4))
        self._length = 1

    def update(
        self,
        small_squares: ArrayLike,
        big_square: float,
        small_size: ArrayLike,
        big_size: float | None = None,
        *,
        scale: float = 1.0,
        clipped: bool = False,
    ) -> None:
        """Take in one step. Norms that are not finite, as AMP has them now and then, are skipped and counted.

        Args:
            small_squares: ‖g_b‖², or those of R groups (R,): ranks, micro-batches or examples.
            big_square: ‖g_B‖² of their mean.
            small_size: b, or (R,): examples, and of a language model sequences.
            big_size: B; by default all groups together.
            scale: by which gradients are too large, as ``GradScaler.get_scale()`` before ``unscale_``.
            clipped: whether gradients were clipped already; these are refused, their norms are the threshold's.

        Raises:
            DiagnosticsError: clipped gradients; sizes or norms that do not fit, as for ``noise_from_norms``.
        """
        if clipped:
            raise DiagnosticsError(
                "clipped gradients have lost their norm",
                given="clipped=True",
                expected="norms from before clipping",
                attempt="the norm that clip_grad_norm_ returns",
            )
        unit = real_number("scale is not positive", scale, "a loss scale", lambda value: 0 < value < math.inf)
        with numpy.errstate(over="ignore"):
            small, big = (
                numpy.asarray(numbers_of(name, given) / unit / unit)
                for name, given in (("small_squares", small_squares), ("big_square", big_square))
            )
        if not (bool(numpy.isfinite(small).all()) and bool(numpy.isfinite(big).all())):
            self.skipped += 1
            return
        gradient, trace = unbiased_pair(small, big, small_size, big_size)
        self.steps += 1
        self._blocks[:, 1:] *= self.decay
        if not len(self._blocks) or self._blocks[-1, 0] >= self._length:
            self._blocks = numpy.concatenate([self._blocks, numpy.zeros((1, 4))])
        self._blocks[-1] += (1.0, 1.0, gradient, trace)
        if len(self._blocks) > BLOCKS:
            self._join()

    @property
    def noise(self) -> GradientNoise:
        """All three with their errors; ``nan`` with the reason before there are two steps."""
        how = f"norms at two batch sizes over {self.steps} steps"
        if self.decay < 1:
            how += f", decay {self.decay:g}"
        if self.skipped:
            how += f", {self.skipped} not finite and skipped"
        if not self.steps:
            nothing = Estimate(math.nan, math.nan, "standard error", f"no step yet; {how}")
            return GradientNoise(nothing, nothing, nothing, 0.0)
        _, weights, gradients, traces = self._blocks.T
        return noise_of_blocks(weights, gradients, traces, how)

    @property
    def simple(self) -> Estimate:
        """B_simple, in examples."""
        return self.noise.simple

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, as JSON and ``torch.save`` take them."""
        return {
            "decay": self.decay,
            "steps": self.steps,
            "skipped": self.skipped,
            "length": self._length,
            "blocks": self._blocks.tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where another tracker was.

        Raises:
            DiagnosticsError: the state of something else, or of another decay.
        """
        try:
            blocks = numpy.asarray(state["blocks"], dtype=numpy.float64).reshape(-1, 4)
            decay, counts = float(state["decay"]), [state[name] for name in ("steps", "skipped", "length")]
        except (KeyError, TypeError, ValueError) as wrong:
            raise DiagnosticsError("state is not of a NoiseTracker", expected="what state_dict() returned") from wrong
        if decay != self.decay:
            raise DiagnosticsError("state is of another decay", given=f"{decay:g}", expected=f"{self.decay:g}")
        steps, skipped, length = (whole_number("state is out of range", n, "counts", 0) for n in counts)
        if not bool(numpy.isfinite(blocks).all()) or bool(steps) != bool(len(blocks)) or not length:
            raise DiagnosticsError(
                "state is damaged",
                given=f"{steps} steps in {len(blocks)} blocks of {length}",
                expected="finite sums, in blocks wherever there are steps",
            )
        self.steps, self.skipped, self._length, self._blocks = steps, skipped, length, blocks

    def _join(self) -> None:
        """Neighbours, while blocks may still grow; then only the two oldest."""
        longest = math.inf if self.decay == 1 else SHARE / (1 - self.decay)
        if 2 * self._length <= longest:
            # The newest block stands alone where their number is odd: it fills up on its own.
            even = len(self._blocks) // 2 * 2
            pairs = self._blocks[:even].reshape(-1, 2, 4).sum(1)
            self._blocks = numpy.concatenate([pairs, self._blocks[even:]])
            self._length *= 2
        else:
            self._blocks = numpy.concatenate([self._blocks[:2].sum(0, keepdims=True), self._blocks[2:]])
