"""Where the selected parameters would stand in a network that has just been made.

Only the parameters that an objective selects are drawn anew; what is frozen stays as it is, so that both networks learn
the same function of the same parameters. The model is copied, the parameters of the copy are filled with NaN, and every
module initialises its own (``reset_parameters``), children before their parents as in construction. What is still NaN
then has no initialiser that is known here.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics.errors import DiagnosticsError
from diagnostics.objective import Objective
from diagnostics.parameters import unwrap
from diagnostics.quiet import reseed

Factory = Callable[[], nn.Module]

INITIALISERS = ("reset_parameters", "_reset_parameters")
ATTEMPT = "fresh=lambda: make_model(), a function that makes a new network of the same kind"


class FreshStartError(Exception):
    """Why there is no fresh network to compare with."""


def fresh_values(objective: Objective, seed: int, factory: Factory | None) -> list[Tensor]:
    """One tensor for each selected parameter, as in a new network. To be called inside ``quiet``.

    Args:
        objective: whose model and selection.
        seed: of every random state there is.
        factory: makes a new network; None to initialise a copy module by module.

    Raises:
        FreshStartError: parts of the model cannot be initialised without a factory.
        DiagnosticsError: the factory makes something else than such a network.
    """
    reseed(seed)
    space = objective.space
    made = _initialised_copy(objective) if factory is None else _made(objective, factory)
    with torch.no_grad():
        return [made[name].detach().to(tensor.device, tensor.dtype, copy=True) for name, tensor in space.items()]


def _made(objective: Objective, factory: Factory) -> dict[str, Tensor]:
    model: Any = factory()
    if not isinstance(model, nn.Module):
        raise DiagnosticsError("fresh makes no module", given=type(model).__name__, expected="a new nn.Module")
    found: dict[str, Tensor] = dict(unwrap(model).named_parameters())
    live = {tensor.data_ptr() for tensor in objective.space.tensors}
    if any(tensor.data_ptr() in live for tensor in found.values()):
        raise DiagnosticsError(
            "fresh hands out the network that is measured",
            given="a module with the same parameters",
            expected="a new network on every call",
            attempt=ATTEMPT,
        )
    for name, tensor in objective.space.items():
        if name not in found or found[name].shape != tensor.shape:
            other = f"shape {tuple(found[name].shape)}" if name in found else "no such parameter"
            raise DiagnosticsError(
                "fresh makes another network",
                given=f"{name}: {other}",
                expected=f"shape {tuple(tensor.shape)}",
                attempt=ATTEMPT,
            )
    return found


def _initialised_copy(objective: Objective) -> dict[str, Tensor]:
    model = objective.model
    by_itself = [
        type(module).__name__ for module in model.modules() if callable(getattr(module, "_init_weights", None))
    ]
    if by_itself:
        raise FreshStartError(f"{by_itself[0]} initialises its modules by itself (_init_weights); pass {ATTEMPT}")
    try:
        twin = copy.deepcopy(model, _without_hooks(model))
    # A model may hold anything, and some of it cannot be copied.
    except Exception as problem:  # noqa: BLE001
        raise FreshStartError(
            f"the model cannot be copied ({type(problem).__name__}: {problem}); pass {ATTEMPT}"
        ) from None
    named: dict[str, Tensor] = dict(twin.named_parameters())
    with torch.no_grad():
        for name in objective.space.names:
            named[name].fill_(torch.nan)
        for module in reversed(list(twin.modules())):
            for initialise in INITIALISERS:
                if callable(method := getattr(module, initialise, None)):
                    try:
                        method()
                    # The user's own initialiser may want arguments, or raise.
                    except Exception as problem:  # noqa: BLE001
                        reason = f"{initialise} of {type(module).__name__} raised {type(problem).__name__}: {problem}"
                        raise FreshStartError(f"{reason}; pass {ATTEMPT}") from None
        named = dict(twin.named_parameters())
        left = [name for name in objective.space.names if bool(named[name].isnan().any())]
    if left:
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        raise FreshStartError(f"no module initialises {', '.join(left[:3])}{more} by reset_parameters; pass {ATTEMPT}")
    return named


def _without_hooks(model: nn.Module) -> dict[int, Any]:
    """A memo by which the copy gets no hooks: behind one of them a whole trainer may hang."""
    return {
        id(hooks): OrderedDict()
        for module in model.modules()
        for name, hooks in vars(module).items()
        if name.endswith("_hooks") and isinstance(hooks, dict)
    }
