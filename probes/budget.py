"""Keeping measurements to a share of training time."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from probes.probe import Probe

GRACE = 10.0
"""Seconds that probes may take whatever the share, so that short runs are not left unmeasured."""


class Budget:
    """Wall time spent on probes against wall time spent on training.

    Args:
        share: probes may take this share of training time; None for no limit.
        expensive: how many probes are held to it, for each has an equal part of it to itself.
    """

    def __init__(self, share: float | None, expensive: int = 1) -> None:
        self.share = share
        self.expensive = max(1, expensive)
        self.spent: dict[str, float] = defaultdict(float)
        self._last: dict[str, float] = {}
        self._began = time.perf_counter()

    @property
    def training(self) -> float:
        """Seconds since the beginning that no probe took."""
        return max(0.0, time.perf_counter() - self._began - sum(self.spent.values()))

    def affords(self, probe: Probe) -> bool:
        """Whether one more measurement, at the cost of the probe's last, keeps all within the share, or at least this
        probe within its equal part of it: one that is too dear must not silence the others.

        Only expensive probes are held to it.
        """
        if self.share is None or probe.cost != "expensive":
            return True
        allowed, next_one = max(GRACE, self.share * self.training), self._last.get(probe.name, 0.0)
        alone = self.spent.get(probe.name, 0.0) + next_one
        return sum(self.spent.values()) + next_one <= allowed or alone <= allowed / self.expensive

    @contextmanager
    def spend(self, probe: str) -> Iterator[None]:
        """Book the time inside to a probe."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._last[probe] = time.perf_counter() - start
            self.spent[probe] += self._last[probe]
