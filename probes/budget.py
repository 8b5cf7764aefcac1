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
    """

    def __init__(self, share: float | None) -> None:
        self.share = share
        self.spent: dict[str, float] = defaultdict(float)
        self._last: dict[str, float] = {}
        self._began = time.perf_counter()

    @property
    def training(self) -> float:
        """Seconds since the beginning that no probe took."""
        return max(0.0, time.perf_counter() - self._began - sum(self.spent.values()))

    def affords(self, probe: Probe) -> bool:
        """Whether one more measurement, at the cost of the probe's last, keeps to the share.

        Only expensive probes are held to it.
        """
        if self.share is None or probe.cost != "expensive":
            return True
        after = sum(self.spent.values()) + self._last.get(probe.name, 0.0)
        return after <= max(GRACE, self.share * self.training)

    @contextmanager
    def spend(self, probe: str) -> Iterator[None]:
        """Book the time inside to a probe."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._last[probe] = time.perf_counter() - start
            self.spent[probe] += self._last[probe]
