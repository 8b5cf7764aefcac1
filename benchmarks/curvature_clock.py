"""Times that can be compared: taken in turns, with the garbage collector off, as medians.

On the CPU they are the seconds this process was given (the work is on one thread), so that a busy machine does not
count; on other devices wall time, once the device is done.
"""

from __future__ import annotations

import contextlib
import gc
import io
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Taken:
    """What one contestant needed and returned; ``failure`` says why there is nothing."""

    seconds: list[float] = field(default_factory=list)
    value: Any = None
    failure: str = ""

    @property
    def median(self) -> float:
        """Seconds; NaN for who failed."""
        return statistics.median(self.seconds) if self.seconds else float("nan")


def in_turns(
    contestants: Mapping[str, Callable[[], Any]],
    seconds: float = 0.0,
    most: int = 1,
    before: Callable[[], object] | None = None,
) -> dict[str, Taken]:
    """Run all of them in rounds, until the time is up (one round at least) or there were ``most`` rounds.

    One that raises is out, with the reason. The global random state is the same for each of them. ``before`` is run
    ahead of each, off the clock: what the one before left in caches and in the allocator is then no advantage.
    """
    taken = {name: Taken() for name in contestants}
    until = time.perf_counter() + seconds
    with _undisturbed():
        for turn in range(most):
            for name, call in contestants.items():
                if not taken[name].failure:
                    if before is not None:
                        before()
                    _run(call, taken[name], turn)
            if time.perf_counter() > until:
                break
    return taken


def _run(call: Callable[[], Any], taken: Taken, seed: int) -> None:
    gc.collect()
    torch.manual_seed(seed)
    began = _now()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            taken.value = call()
    except Exception as error:  # noqa: BLE001 - a peer that does not run is a result
        taken.failure = (str(error).strip().splitlines() or [type(error).__name__])[0]
        taken.seconds.clear()
    else:
        taken.seconds.append(_now() - began)


def _now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        gc.enable()
