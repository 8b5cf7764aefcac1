"""What normalisation layers and saved moments say, as readings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from diagnostics import DiagnosticsError, adam_state, normalisation_gains
from probes.checkpoint.errors import printable
from probes.probe import Reading
from probes.readings import reading_of

_GAINS = ("smallest", "largest", "near_zero", "negative", "batches", "small_variances", "negative_variances")


def gain_readings(parameters: Mapping[str, Tensor]) -> Iterator[Reading]:
    """The gains and running statistics of each normalisation layer, as ``norm_...``.

    Args:
        parameters: the model's tensors by name.
    """
    for row in normalisation_gains(parameters).rows:
        yield Reading("norm_width", float(row.width), row.layer, note="every gain looked at")
        for name in _GAINS:
            value = getattr(row, name)
            if value is not None and value == value:
                yield Reading(f"norm_{name}", float(value), row.layer, note="every gain looked at")
        yield Reading("norm_never_updated", float(row.never_updated), row.layer, note="every gain looked at")


def adam_readings(
    optimizer: Mapping[str, Any], read: Callable[[Tensor], None] = lambda tensor: None
) -> Iterator[Reading]:
    """Rate, signal and ε share of each matrix with moments of Adam's kind, as ``adam_...``.

    Vectors are left out: a bias in front of batch normalisation gets no gradient but rounding, by design.

    Args:
        optimizer: the optimizer's state dict.
        read: called with a moment whenever some of it has been read, for those who hold a mapped file.
    """
    try:
        rows = adam_state(optimizer, read=read).rows
    except DiagnosticsError as problem:
        yield Reading("adam_signal", None, note=str(problem), status="skipped")
        return
    for row in (row for row in rows if len(row.shape) > 1 or row.note):
        layer = f"parameter {printable(row.parameter)}"
        yield reading_of("adam_signal", row.signal, layer)
        yield reading_of("adam_epsilon_share", row.epsilon_share, layer)
        yield reading_of("adam_untouched", row.untouched, layer)
        if not row.note:
            yield Reading("adam_rate", row.rates[2], layer, note="median of η/(√v̂ + ε) over coordinates, to 1 %")
            yield Reading("adam_step", row.step, layer, note="as saved")
