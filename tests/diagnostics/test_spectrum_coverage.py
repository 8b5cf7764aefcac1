"""Stated errors cover the truth: 95 % intervals over 400 seeds.

The true coverage is seen to within ±2.2 % (two sigma of a binomial of 400), so 93 to 97 % is what a right error gives.
The operators are diagonal, which loses nothing: probes on the sphere look the same from every basis.
"""

from __future__ import annotations

import math
from collections import defaultdict

import pytest
import torch
from torch import Tensor

from diagnostics.curvature.spectrum import Spectrum, spectral_density

SEEDS = 400

SPECTRA = {
    "uniform": torch.linspace(-1, 1, 100).double(),
    "like a network": torch.cat(
        [torch.tensor([30.0, 20, 14, 9, 6]), torch.logspace(0, -4, 75), -0.3 * torch.logspace(0, -3, 20)]
    ).double(),
    "null space": torch.cat([torch.zeros(60), torch.linspace(1, 2, 40)]).double(),
}
THRESHOLDS = {"uniform": (-0.1, 0.5), "like a network": (-0.1, 0.5), "null space": (0.5, 1.5)}


def _statistics(spectrum: Spectrum, low: float, high: float) -> dict[str, tuple[float, float]]:
    estimates = {
        "trace": spectrum.trace,
        "share below": spectrum.mass(-math.inf, low),
        "share above": spectrum.mass(high, math.inf),
        "frobenius": spectrum.frobenius,
        "participation ratio": spectrum.participation_ratio,
        "effective rank": spectrum.effective_rank,
        "log": spectrum.function(lambda x: torch.log(x.abs() + 0.1)),
    }
    return {name: (estimate.value, estimate.error) for name, estimate in estimates.items()}


def _truth(values: Tensor, low: float, high: float) -> dict[str, float]:
    sizes = values.abs()
    shares = sizes / sizes.sum()
    return {
        "trace": float(values.sum()),
        "share below": float((values <= low).double().mean()),
        "share above": float((values >= high).double().mean()),
        "frobenius": float(values.norm()),
        "participation ratio": float(sizes.sum() ** 2 / sizes.square().sum()),
        "effective rank": math.exp(-float(torch.xlogy(shares, shares).sum())),
        "log": float(torch.log(sizes + 0.1).sum()),
    }


@pytest.mark.parametrize("name", SPECTRA)
def test_coverage(name: str) -> None:
    values, thresholds = SPECTRA[name], THRESHOLDS[name]
    matrix, truth = torch.diag(values), _truth(values, *thresholds)
    hits: dict[str, int] = defaultdict(int)
    for seed in range(SEEDS):
        spectrum = spectral_density(matrix, probes=6, steps=48, seed=seed)
        for statistic, (value, error) in _statistics(spectrum, *thresholds).items():
            hits[statistic] += abs(value - truth[statistic]) <= 1.96 * error
    coverage = {statistic: hits[statistic] / SEEDS for statistic in truth}
    for statistic in ("trace", "share below", "share above"):
        assert 0.93 <= coverage[statistic] <= 0.97, coverage
    assert all(0.925 <= share <= 0.985 for share in coverage.values()), coverage


def test_coverage_of_a_single_probe() -> None:
    """The variance comes from the spectrum, so one draw is enough to state it."""
    values = SPECTRA["uniform"]
    hits = 0
    for seed in range(SEEDS):
        trace = spectral_density(torch.diag(values), probes=1, steps=16, seed=seed).trace
        hits += abs(trace.value - float(values.sum())) <= 1.96 * trace.error
    assert 0.93 <= hits / SEEDS <= 0.97


def test_no_less_than_promised_where_one_eigenvalue_outweighs_all() -> None:
    values = torch.cat([torch.tensor([3.0]), torch.zeros(99)])
    hits = 0
    for seed in range(SEEDS):
        trace = spectral_density(torch.diag(values), probes=8, steps=4, seed=seed).trace
        hits += abs(trace.value - 3.0) <= 1.96 * trace.error
    assert hits / SEEDS >= 0.93
