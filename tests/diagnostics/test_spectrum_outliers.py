"""``Spectrum.outliers``: planted ones once each, whatever the precision and the memory, and none in a pure bulk."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diagnostics.curvature.spectrum import spectral_density

GENERATOR = torch.Generator().manual_seed(5)


class Diagonal:
    """A diagonal operator, for sizes at which a matrix would not fit."""

    def __init__(self, diagonal: Tensor) -> None:
        self.diagonal = diagonal
        self.shape = (len(diagonal), len(diagonal))
        self.dtype, self.device = diagonal.dtype, diagonal.device

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return (self.diagonal * vectors.T).T


def _uniform(size: int) -> Tensor:
    return torch.rand(size, generator=GENERATOR).double()


def _semicircle(size: int) -> Tensor:
    draw = torch.randn(size, size, dtype=torch.float64, generator=GENERATOR)
    return torch.linalg.eigvalsh((draw + draw.T) / math.sqrt(2 * size))


def _marchenko_pastur(size: int, examples: int) -> Tensor:
    features = torch.randn(examples, size, dtype=torch.float64, generator=GENERATOR)
    return torch.linalg.eigvalsh(features.T @ features / examples)


BULKS = {
    "semicircle": _semicircle(300),
    "Marchenko-Pastur, N = P/2": _marchenko_pastur(300, 150),
    "Marchenko-Pastur, N = P/6": _marchenko_pastur(300, 50),
    "Marchenko-Pastur, N = 2P": _marchenko_pastur(300, 600),
    "uniform": _uniform(300),
    "evenly spaced": torch.linspace(-1, 1, 300).double(),
    "all negative": -1 - _uniform(300),
    "identity": torch.ones(50).double(),
    "zero": torch.zeros(50).double(),
    "two values": torch.tensor([1.0, 2.0]).repeat(50).double(),
    "one": torch.tensor([3.0]).double(),
}


@pytest.mark.parametrize("name", BULKS)
@pytest.mark.parametrize("steps", [8, 16, 64, 150])
@pytest.mark.parametrize("max_basis", [None, 1])
def test_a_pure_bulk_has_none(name: str, steps: int, max_basis: int | None) -> None:
    values = BULKS[name]
    for seed in range(3):
        spectrum = spectral_density(Diagonal(values), probes=4, steps=steps, seed=seed, max_basis=max_basis)
        found = spectrum.outliers()
        assert len(found) == 0, (seed, found)
        assert (found.count.value, found.count.kind, found.total.value) == (0, "exact", 0)
        ends = (spectrum.largest.value, spectrum.smallest.value)
        assert (found.edge, found.lower_edge) == pytest.approx(ends, abs=1e-12)
        assert str(found) == "no outliers"


PLANTED = {
    "two decades over a narrow bulk": ([100, 56, 31, 18, 10, 5.6, 3.1, 1.8, 1], lambda size: 1e-3 * _uniform(size)),
    "evenly over a wide bulk": ([9, 8, 7, 6, 5, 4, 3, 2.2, 1.6], _uniform),
    "on both sides": ([13, 12, 11, 10, 9, 5, 3, -3, -6], lambda size: 2 * _uniform(size) - 1),
    "over a null space": ([100, 56, 31, 18, 10, 5.6, 3.1, 1.8, 1], lambda size: torch.zeros(size)),
}


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("max_basis", [None, 4], ids=["orthogonal", "three terms"])
@pytest.mark.parametrize("steps", [48, 100])
def test_nine_planted_ones_are_found_once_each(
    name: str, dtype: torch.dtype, max_basis: int | None, steps: int
) -> None:
    planted, bulk = PLANTED[name]
    values = torch.cat([torch.tensor(planted), bulk(5000)]).to(dtype)
    spectrum = spectral_density(Diagonal(values), probes=6, steps=steps, max_basis=max_basis)
    assert spectrum.orthogonal == (max_basis is None)
    found = spectrum.outliers()
    assert found.count.value == 9
    tolerance = 1e-4 if max_basis else 1e-5
    torch.testing.assert_close(found.values, torch.tensor(planted).double(), rtol=0, atol=tolerance * max(planted))
    assert abs(found.total.value - 9) <= 4 * found.total.error
    if max_basis is None:
        assert ((found.values - torch.tensor(planted)).abs() <= 2 * found.residuals).all()


def test_copies_do_come_without_a_basis() -> None:
    """The control: there is something for the count to be robust against."""
    values = torch.cat([torch.tensor([100.0, 50.0, 20.0]), 1e-3 * _uniform(5000).float()])
    spectrum = spectral_density(Diagonal(values), probes=1, steps=80, max_basis=1)
    assert int((spectrum.nodes > 10).sum()) > 6
    assert len(spectrum.outliers()) == 3


@pytest.mark.parametrize("probes", [1, 2])
def test_few_probes_see_the_same(probes: int) -> None:
    values = torch.cat([torch.tensor([5.0, 3.0, -4.0]), _uniform(400)])
    found = spectral_density(Diagonal(values), probes=probes, steps=48).outliers()
    torch.testing.assert_close(found.values, torch.tensor([5.0, 3.0, -4.0], dtype=torch.float64))


def test_a_repeated_one_is_one_value_with_its_multiplicity() -> None:
    values = torch.cat([torch.full((12,), 7.0), _uniform(2000)])
    found = spectral_density(Diagonal(values), probes=16, steps=40).outliers()
    assert found.count.value == 1
    assert float(found.multiplicities) == pytest.approx(12, rel=4 * math.sqrt(2 / (16 * 12)))


def test_a_few_eigenvalues_alone_stand_out_from_zero() -> None:
    assert spectral_density(torch.ones(12, 12)).outliers().count.value == 1


def test_the_edge_is_between_bulk_and_outliers() -> None:
    values = torch.cat([torch.tensor([6.0, 4.0]), _uniform(900)])
    found = spectral_density(Diagonal(values), steps=64).outliers()
    assert found.edge == pytest.approx(float(values[2:].max()), abs=0.01)


def test_a_close_spike_needs_a_crowd_below_its_gap() -> None:
    """Eigenvalues 0.001 apart: a gap of 15 is nothing to speak of, one of 40 is."""
    bulk = torch.linspace(0, 1, 1000).double()
    for gap, expected in ((0.015, 0), (0.040, 1)):
        values = torch.cat([torch.tensor([1 + gap]).double(), bulk])
        assert len(spectral_density(Diagonal(values), steps=200).outliers()) == expected


def test_what_a_person_reads() -> None:
    values = torch.cat([torch.tensor([float(value) for value in range(10, 3, -1)]), _uniform(900)])
    text = str(spectral_density(Diagonal(values)).outliers())
    assert text.startswith("7 outliers beyond [")
    assert text.endswith(": 10, 9, 8, 7, 6, ...")
