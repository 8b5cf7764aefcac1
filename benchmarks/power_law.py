"""The power-law fit against the ``powerlaw`` package: time for one fit, and whether it is the same one.

Compiling, once per process on our side, is left out and printed. The package gets no bound on the exponent: its own,
3, would leave out every thin tail. Outside 1.5 to 3 it polishes the closed form with a search, so it is also timed on
values where most tails need none.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy
import powerlaw
import torch

from benchmarks.curvature_clock import in_turns
from diagnostics import power_law

SIDE = 4096
AIM = 30.0
SAME = 1e-6


def main() -> None:
    """Print a line per sample."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    power_law(numpy.arange(1.0, 9.0))
    print(f"power-law fit of {SIDE:,} values, one thread; compiling took {time.perf_counter() - began:.1f} s before")
    torch.manual_seed(0)
    random = numpy.random.default_rng(0)
    weight = torch.randn(SIDE, SIDE, dtype=torch.float64)
    left, right = (torch.linalg.qr(torch.randn(SIDE, 256, dtype=torch.float64)).Q for _ in range(2))
    strong = left * (3000 * torch.arange(1, 257) ** -0.8) @ right.T
    samples = {
        "eigenvalues of a Gaussian matrix": _eigenvalues(weight),
        "the same with 256 strong directions": _eigenvalues(weight + strong),
        "Pareto, exponent 2": (1 - random.random(SIDE)) ** -1.0,
    }
    for name, values in samples.items():
        _compare(name, values)


def _eigenvalues(weight: torch.Tensor) -> numpy.ndarray:
    return torch.linalg.eigvalsh(weight.T @ weight).numpy()


def _compare(name: str, values: numpy.ndarray) -> None:
    ours = in_turns({"ours": lambda: power_law(values)}, seconds=2, most=9)["ours"]
    theirs = in_turns({"powerlaw": _peer(values)})["powerlaw"]
    fit, peer = ours.value, theirs.value
    pairs = ((fit.exponent, peer.alpha), (fit.x_min, peer.xmin), (fit.distance, peer.D))
    apart = max(abs(one.value / other - 1) for one, other in pairs)
    ratio = theirs.median / ours.median
    verdict = f"{'>= ' if ratio >= AIM else '< '}{AIM:g} {'met' if ratio >= AIM else 'MISSED'}"
    same = f"{'<=' if apart <= SAME else '>'} {SAME:g} {'met' if apart <= SAME else 'MISSED'}"
    print(f"  {name:<38}{1e3 * ours.median:8.1f} ms, powerlaw / ours {ratio:8.0f} {verdict}")
    print(f"    exponent {fit.exponent}, tail {fit.tail:,}; apart by {apart:.0e} {same}", flush=True)


def _peer(values: numpy.ndarray) -> Callable[[], Any]:
    def fit() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return powerlaw.Fit(values, verbose=0, parameter_ranges={"alpha": [1, None]})

    return fit


if __name__ == "__main__":
    main()
