"""What the measures here are given, refused in one way where it is out of range."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diagnostics.curvature.operators import Hessian
from diagnostics.errors import DiagnosticsError
from diagnostics.objective import Objective


def real_number(what: str, given: Any, expected: str, within: Callable[[float], bool]) -> float:
    """A number that is within its range; NaN never is.

    Args:
        what: the complaint, beginning with the argument's name.
        given: a number, or a tensor or array of one.
        expected: what would do.
        within: whether a value is in range.

    Raises:
        DiagnosticsError: it is not a number, or out of range.

    Example:
        >>> real_number("rtol is not positive", 1, "as 0.02", lambda value: value > 0)
        1.0
    """
    try:
        value = math.nan if isinstance(given, str | bytes | bool) else float(given)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        value = math.nan
    if not within(value):
        raise DiagnosticsError(what, given=repr(given), expected=expected)
    return value


def whole_number(what: str, given: Any, expected: str, least: int) -> int:
    """A whole number from ``least`` on; truth values and floats are none.

    Raises:
        DiagnosticsError: it is something else, or smaller.

    Example:
        >>> whole_number("steps is out of range", 3, "a whole number from 1", 1)
        3
    """
    try:
        value = None if isinstance(given, bool) else operator.index(given)
    except TypeError:
        value = None
    if value is None or value < least:
        raise DiagnosticsError(what, given=repr(given), expected=expected)
    return value


def require_objective(objective: Any) -> None:
    """Refuse what is no Objective: a model, a loss, None.

    Raises:
        DiagnosticsError: it is something else.
    """
    if not isinstance(objective, Objective):
        raise DiagnosticsError(
            "objective is not an Objective",
            given=type(objective).__name__,
            expected="a model with its loss and batches",
            attempt="Objective(model, loss, batches)",
        )


def require_state_dicts(state_dicts: Any, what: str) -> None:
    """Refuse what is not two or more checkpoints.

    Args:
        state_dicts: what was given.
        what: the start of the message.

    Raises:
        DiagnosticsError: fewer, or something else than mappings.
    """
    several = isinstance(state_dicts, Sequence)
    if not (several and len(state_dicts) > 1 and all(isinstance(one, Mapping) for one in state_dicts)):
        raise DiagnosticsError(
            what,
            given=f"{len(state_dicts)} of them" if several else type(state_dicts).__name__,
            expected="a list of two or more mappings from names to tensors, in the order of training",
        )


def require_finite_loss(objective: Objective) -> None:
    """Refuse a run that has diverged: a quadratic loss has curvature even where its parameters are NaN.

    Raises:
        DiagnosticsError: the loss is not finite.
    """
    loss = objective.loss()
    if not math.isfinite(loss):
        raise DiagnosticsError(
            "the loss is not finite",
            given=f"loss {loss:g}",
            expected="finite parameters, data and loss",
            attempt="a checkpoint from before the run diverged",
        )


def hessian_of(objective: Any, hessian: Any) -> Hessian:
    """The Hessian that was made already, if it is of this objective; a new one where there is none.

    Raises:
        DiagnosticsError: something else than a Hessian, or that of another model or selection.
    """
    require_objective(objective)
    if hessian is None:
        return Hessian(objective)
    if not isinstance(hessian, Hessian):
        raise DiagnosticsError(
            "hessian is not a Hessian",
            given=type(hessian).__name__,
            expected="one made for this objective, or None",
            attempt="hessian=Hessian(objective)",
        )
    theirs = hessian.objective
    if theirs.model is not objective.model or theirs.space.names != objective.space.names:
        raise DiagnosticsError(
            "hessian is not of this objective",
            given=f"the Hessian of {theirs.num_parameters:,} parameters of a {type(theirs.model).__name__}",
            expected=f"that of the same model object and the same {objective.num_parameters:,} parameters",
            attempt="hessian=Hessian(objective)",
        )
    return hessian
