"""What the saved state of an optimizer of Adam's kind says, without the optimizer and without a gradient.

From the two moments of each tensor, with bias correction, coordinate by coordinate:

* rate: η/(√v̂ + ε), the step per unit of a steady gradient;
* signal: mean of m̂²/v̂ over coordinates. Where gradients keep their value it is 1; where they are nothing but noise its
  mean is about (1 − β1)/(1 + β1), 0.053 at β1 = 0.9;
* ε share: coordinates with √v̂ < ε, where the optimizer is plain descent with rate η/ε.

Moments are read in pieces, so nothing is sorted: quantiles come from counts of √v̂ in steps of 1 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, exact
from diagnostics.learning_rate.moments import QUANTILES
from diagnostics.weights.blocks import as_matrix, pieces

if TYPE_CHECKING:
    import pandas

PER_OCTAVE = 64
OCTAVES = 1100
"""On either side of 1; what float64 cannot hold lies beyond."""

Read = Callable[[Tensor], None]


@dataclass(frozen=True)
class AdamTensor:
    """The moments of one tensor.

    Attributes:
        parameter: its name where the state has names, and else its number, in the order of the groups.
        shape: of the tensor.
        lr: η of its group.
        step: steps taken.
        rates: η/(√v̂ + ε) at the quantiles 5, 25, 50, 75 and 95 % of coordinates, to 1 %.
        signal: mean of m̂²/v̂ over coordinates where v̂ is not zero.
        noise_alone: what ``signal`` would be for gradients without a mean: (1 − β1)/(1 + β1), in the long run.
        epsilon_share: share of coordinates with √v̂ < ε.
        untouched: share of coordinates with v = 0: no gradient ever reached them.
        note: why there are no numbers.
    """

    parameter: str
    shape: tuple[int, ...]
    lr: float
    step: float
    rates: tuple[float, ...]
    signal: Estimate
    noise_alone: float
    epsilon_share: Estimate
    untouched: Estimate
    note: str = ""


@dataclass(frozen=True, repr=False)
class AdamState:
    """A table with one row per tensor that has both moments."""

    rows: list[AdamTensor]

    def to_pandas(self) -> pandas.DataFrame:
        """The values as a DataFrame; rates as columns ``rate_05`` to ``rate_95``. Needs pandas."""
        import pandas

        return pandas.DataFrame([dict(_cells(row)) for row in self.rows])

    def __str__(self) -> str:
        if not self.rows:
            return "no moments of Adam's kind"
        width = max([9, *(len(row.parameter) for row in self.rows)])
        lines = [f"{'parameter':<{width}}  {'step':>8}  {'rate':>9}  {'signal':>7}  {'below ε':>7}  untouched"]
        for row in self.rows:
            signal, share, zero = (
                "?" if not value.determined else f"{value.value:.3g}"
                for value in (row.signal, row.epsilon_share, row.untouched)
            )
            lines.append(
                f"{row.parameter:<{width}}  {row.step:>8.0f}  {row.rates[2]:>9.3g}  {signal:>7}  {share:>7}  {zero}"
                + (f"  {row.note}" if row.note else "")
            )
        return "\n".join(lines)

    __repr__ = __str__


def adam_state(optimizer_state: Mapping[str, Any], *, read: Read = lambda tensor: None) -> AdamState:
    """Read the moments in an optimizer's state dict; tensors without two moments are passed over.

    Args:
        optimizer_state: ``optimizer.state_dict()`` of Adam, AdamW, AMSGrad, NAdam or RAdam, or the same from a file.
        read: called with a moment whenever some of it has been read, for those who hold a mapped file.

    Raises:
        DiagnosticsError: it is no optimizer's state dict, or a damaged one.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(3))
        >>> adam = torch.optim.Adam([w], lr=0.1)
        >>> for _ in range(5):
        ...     w.grad = torch.tensor([1.0, -2.0, 0.0])
        ...     _ = adam.step()
        >>> row = adam_state(adam.state_dict()).rows[0]
        >>> print(row.step, f"{row.rates[0]:.2f} {row.rates[2]:.2f}", row.signal, row.untouched)
        5.0 0.05 0.10 1 0.3333
    """
    groups, state = (optimizer_state.get(key) if isinstance(optimizer_state, Mapping) else None for key in _KEYS)
    if not isinstance(groups, Sequence) or not isinstance(state, Mapping):
        raise DiagnosticsError(
            "optimizer_state is no optimizer's state dict",
            given=type(optimizer_state).__name__,
            expected="a mapping with 'state' and 'param_groups'",
            attempt="optimizer.state_dict()",
        )
    try:
        with torch.inference_mode(False), torch.no_grad():
            return AdamState(list(_rows(groups, state, read)))
    # A file may hold anything under these names.
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as problem:
        raise DiagnosticsError(
            "optimizer_state cannot be read",
            given=f"{type(problem).__name__}: {problem}",
            expected="groups with numbers as settings, and moments as tensors",
        ) from problem


_KEYS = ("param_groups", "state")


def _rows(groups: Sequence[Any], state: Mapping[Any, Any], read: Read) -> Iterator[AdamTensor]:
    for group in groups:
        if not isinstance(group, Mapping) or not {"lr", "betas", "eps", "params"} <= group.keys():
            continue
        names = group.get("param_names") or group["params"]
        for number, name in zip(group["params"], names, strict=False):
            entry = state.get(number) if isinstance(number, int | str) else None
            if isinstance(entry, Mapping) and {"exp_avg", "exp_avg_sq", "step"} <= entry.keys():
                yield _row(str(name), entry, group, read)


def _row(name: str, entry: Mapping[str, Any], group: Mapping[str, Any], read: Read) -> AdamTensor:
    first, second = entry["exp_avg"], entry.get("max_exp_avg_sq", entry["exp_avg_sq"])
    lr, step, epsilon = float(group["lr"]), float(entry["step"]), float(group["eps"])
    beta1, beta2 = (float(beta) for beta in group["betas"])
    reason = _unreadable(first, second, step)
    found = reason if reason else _sums(first, second, (1 - beta1**step, 1 - beta2**step), epsilon, read)
    noise = (1 - beta1) / (1 + beta1)
    if isinstance(found, str):
        missing = Estimate(math.nan, math.nan, "exact", found)
        shape = tuple(first.shape) if isinstance(first, Tensor) else ()
        rates = (math.nan,) * len(QUANTILES)
        return AdamTensor(name, shape, lr, step, rates, missing, noise, missing, missing, found)
    count, there = first.numel(), found.there
    return AdamTensor(
        parameter=name,
        shape=tuple(first.shape),
        lr=lr,
        step=step,
        rates=tuple(lr / (root + epsilon) for root in _quantiles(found.roots)),
        signal=exact(found.signal / there, f"mean of m̂²/v̂ over {there:,} of {count:,} coordinates")
        if there
        else Estimate(math.nan, math.nan, "exact", "v is zero throughout: no gradient ever came"),
        noise_alone=noise,
        epsilon_share=exact(found.below / count, "count over coordinates"),
        untouched=exact(1.0 - there / count, "count over coordinates"),
    )


class _Sums(NamedTuple):
    """Over coordinates: how many have v > 0, the sum of m̂²/v̂, how many √v̂ < ε, and the counts of log √v̂."""

    there: int
    signal: float
    below: int
    roots: Tensor


def _sums(first: Tensor, second: Tensor, corrections: tuple[float, float], epsilon: float, read: Read) -> _Sums | str:
    bins = 2 * OCTAVES * PER_OCTAVE
    roots = torch.zeros(bins, dtype=torch.int64)
    there = below = 0
    signal = 0.0
    parts = zip(
        pieces(as_matrix(first), lambda: read(first)), pieces(as_matrix(second), lambda: read(second)), strict=True
    )
    for mean, square in parts:
        mean, square = mean.double() / corrections[0], square.double() / corrections[1]
        if not bool(mean.isfinite().all()) or not bool(square.isfinite().all()):
            return "moments that are not finite"
        if bool((square < 0).any()):
            return "a negative second moment"
        root = square.sqrt()
        positive = root > 0
        there += int(positive.sum())
        signal += float((mean[positive] / root[positive]).square().sum())
        below += int((root < epsilon).sum())
        # Zero goes into the first bin.
        places = ((root.log2() + OCTAVES) * PER_OCTAVE).clamp_(0, bins - 1).to(torch.int64)
        roots += torch.bincount(places, minlength=bins)
    return _Sums(there, signal, below, roots)


def _quantiles(counts: Tensor) -> Iterator[float]:
    """√v̂ at the quantiles of the rates: the largest root has the smallest rate."""
    below = counts.cumsum(0)
    count = int(below[-1])
    for q in QUANTILES:
        place = int(torch.searchsorted(below, count - 1 - round(q * (count - 1)), right=True))
        yield 2.0 ** ((place + 0.5) / PER_OCTAVE - OCTAVES) if place else 0.0


def _unreadable(first: Any, second: Any, step: float) -> str:
    tensors = isinstance(first, Tensor) and isinstance(second, Tensor)
    if not tensors or first.shape != second.shape or not first.numel() or not first.is_floating_point():
        return "no pair of moments of one shape"
    if first.layout is not torch.strided or first.is_meta:
        return "moments without values"
    return "" if step >= 1 else "no step was taken"


def _cells(row: AdamTensor) -> Iterator[tuple[str, Any]]:
    for column in fields(row):
        value = getattr(row, column.name)
        if column.name == "rates":
            yield from ((f"rate_{round(100 * q):02d}", rate) for q, rate in zip(QUANTILES, value, strict=True))
        else:
            yield column.name, value.value if isinstance(value, Estimate) else value
