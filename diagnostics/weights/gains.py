"""The gains of normalisation layers, and the running statistics of batch normalisation, from names and shapes alone.

A vector called ``weight`` is taken for a gain where its layer has no matrix, and has a bias of its shape, running
statistics, or a name with ``norm``, ``ln`` or ``bn`` in it. A channel whose gain is near zero is switched off; one
whose running variance is below ε = 1e-5 is divided by √ε instead of by its own spread. Gains that are all zero are a
design (residual branches that start closed, or gains stored less one), and are counted like others.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diagnostics.errors import DiagnosticsError

if TYPE_CHECKING:
    import pandas

NEAR_ZERO = 1e-3
"""Of the root mean square of a layer's gains: smaller ones are near zero."""

EPSILON = 1e-5
"""What nn.BatchNorm adds to a variance by default; a state dict does not say what this one did."""

_NAME = re.compile(r"norm|(^|[._])(ln|bn)", re.IGNORECASE)


@dataclass(frozen=True)
class NormGains:
    """One normalisation layer.

    Attributes:
        layer: its name.
        batch_norm: whether it keeps running statistics.
        width: how many gains it has; 0 for a layer without.
        smallest: the smallest magnitude among finite gains; nan without any.
        largest: the largest.
        near_zero: gains below a thousandth of their root mean square; all of them where that is zero.
        negative: gains below zero.
        non_finite: gains and running statistics that are NaN or infinite.
        untouched: whether gains are all 1 (or 0) and biases all 0, as before training.
        batches: batches that the running statistics were made of; None where that is not kept.
        small_variances: running variances below 1e-5, zero included; None without running statistics.
        negative_variances: below zero, which no data can give; None likewise.
        default_statistics: whether running means are all 0 and variances all 1, as before training; None likewise.
    """

    layer: str
    batch_norm: bool
    width: int
    smallest: float
    largest: float
    near_zero: int
    negative: int
    non_finite: int
    untouched: bool
    batches: int | None
    small_variances: int | None
    negative_variances: int | None
    default_statistics: bool | None

    @property
    def never_updated(self) -> bool:
        """Whether gains were trained, and running statistics are those from before training."""
        return bool(self.default_statistics) and not self.untouched and self.width > 0


@dataclass(frozen=True, repr=False)
class NormalisationGains:
    """A table with one row per normalisation layer."""

    rows: list[NormGains]

    def to_pandas(self) -> pandas.DataFrame:
        """The values as a DataFrame. Needs pandas."""
        import pandas

        columns = [column.name for column in fields(NormGains)]
        return pandas.DataFrame([{name: getattr(row, name) for name in columns} for row in self.rows], columns=columns)

    def __str__(self) -> str:
        if not self.rows:
            return "no normalisation layer was found"
        width = max([5, *(len(row.layer) for row in self.rows)])
        lines = [f"{'layer':<{width}}  gains  smallest   largest  near zero  negative  batches  small variances"]
        for row in self.rows:
            batches, small = ("-" if value is None else str(value) for value in (row.batches, row.small_variances))
            lines.append(
                f"{row.layer:<{width}}  {row.width:>5}  {row.smallest:>8.3g}  {row.largest:>8.3g}  {row.near_zero:>9}  "
                f"{row.negative:>8}  {batches:>7}  {small:>15}"
            )
        return "\n".join(lines)

    __repr__ = __str__


def normalisation_gains(state_dict: Mapping[str, Any]) -> NormalisationGains:
    """Look at the gains and running statistics of every normalisation layer.

    Args:
        state_dict: tensors by name, such as ``model.state_dict()``.

    Raises:
        DiagnosticsError: no mapping from names.

    Example:
        >>> norm = torch.nn.BatchNorm1d(4)
        >>> with torch.no_grad():
        ...     _ = norm.weight.copy_(torch.tensor([1.0, 1e-6, -0.5, 2.0]))
        >>> row = normalisation_gains(torch.nn.Sequential(norm).state_dict()).rows[0]
        >>> row.layer, row.near_zero, row.negative, row.never_updated
        ('0', 1, 1, True)
    """
    if not isinstance(state_dict, Mapping):
        raise DiagnosticsError(
            "state_dict has no tensors by name", given=type(state_dict).__name__, attempt="model.state_dict()"
        )
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state_dict.items():
        if isinstance(name, str) and isinstance(tensor, Tensor) and _readable(tensor):
            layer, _, part = name.rpartition(".")
            layers.setdefault(layer, {})[part] = tensor
    found = ((layer, parts) for layer, parts in layers.items() if _normalises(layer, parts))
    with torch.inference_mode(False), torch.no_grad():
        return NormalisationGains([_row(layer, parts) for layer, parts in found])


def _readable(tensor: Tensor) -> bool:
    return not (tensor.is_nested or tensor.is_meta or tensor.is_quantized or tensor.is_complex() or tensor.is_sparse)


def _normalises(layer: str, parts: Mapping[str, Tensor]) -> bool:
    if "running_var" in parts:
        return all(parts[name].ndim == 1 for name in ("running_var", "running_mean", "weight", "bias") if name in parts)
    gain, bias = parts.get("weight"), parts.get("bias")
    if gain is None or gain.ndim != 1 or not gain.is_floating_point() or any(part.ndim > 1 for part in parts.values()):
        return False
    return (bias is not None and bias.shape == gain.shape) or _NAME.search(layer) is not None


def _row(layer: str, parts: Mapping[str, Tensor]) -> NormGains:
    gains = _finite(parts, "weight")
    sizes = gains.abs()
    scale = math.sqrt(float(sizes.square().mean())) if len(gains) else 0.0
    variances = _finite(parts, "running_var") if "running_var" in parts else None
    watched = [parts[name] for name in ("weight", "running_mean", "running_var") if name in parts]
    tracked = parts.get("num_batches_tracked")
    return NormGains(
        layer=layer,
        batch_norm=variances is not None,
        width=len(parts["weight"]) if "weight" in parts else 0,
        smallest=float(sizes.min()) if len(gains) else math.nan,
        largest=float(sizes.max()) if len(gains) else math.nan,
        near_zero=int((sizes <= NEAR_ZERO * scale).sum()),
        negative=int((gains < 0).sum()),
        non_finite=sum(int((~tensor.double().isfinite()).sum()) for tensor in watched),
        untouched=_all(parts, "weight", (0.0, 1.0)) and _all(parts, "bias", (0.0,)),
        batches=int(tracked) if tracked is not None and tracked.numel() == 1 else None,
        small_variances=None if variances is None else int((variances.abs() < EPSILON).sum()),
        negative_variances=None if variances is None else int((variances < 0).sum()),
        default_statistics=None
        if variances is None
        else _all(parts, "running_mean", (0.0,)) and _all(parts, "running_var", (1.0,)),
    )


def _finite(parts: Mapping[str, Tensor], name: str) -> Tensor:
    values = parts[name].detach().double().flatten() if name in parts else torch.zeros(0, dtype=torch.float64)
    return values[values.isfinite()]


def _all(parts: Mapping[str, Tensor], name: str, values: tuple[float, ...]) -> bool:
    return name not in parts or any(bool((parts[name].detach().double() == value).all()) for value in values)
