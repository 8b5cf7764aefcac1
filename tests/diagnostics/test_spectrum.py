"""``spectral_density``: closed forms, degenerate operators, honest thresholds, drawing, and what a person reads."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from torch import Tensor

from diagnostics import DiagnosticsError, Estimate
from diagnostics.curvature.spectrum import Spectrum, spectral_density, spectral_function

GENERATOR = torch.Generator().manual_seed(5)


def _wigner(size: int) -> Tensor:
    draw = torch.randn(size, size, dtype=torch.float64, generator=GENERATOR)
    return (draw + draw.T) / math.sqrt(2 * size)


def _marchenko_pastur(parameters: int, examples: int) -> Tensor:
    features = torch.randn(examples, parameters, dtype=torch.float64, generator=GENERATOR)
    return features.T @ features / examples


def _within(estimate: Estimate, truth: float, sigmas: float = 4.0) -> None:
    assert abs(estimate.value - truth) <= sigmas * estimate.error + 1e-12 * abs(truth), (estimate, truth)


MATRICES = {
    "Marchenko-Pastur": _marchenko_pastur(120, 60),
    "semicircle": _wigner(150),
    "indefinite, -5 largest in magnitude": torch.diag(torch.cat([torch.tensor([-5.0]), torch.linspace(0, 2, 60)])),
    "zero": torch.zeros(8, 8),
    "rank one": torch.ones(12, 12),
    "identity": torch.eye(7),
    "P = 1": torch.tensor([[3.0]]),
    "P = 1, zero": torch.zeros(1, 1),
    "P below steps": torch.diag(torch.linspace(-1.0, 2.0, 9)),
    "repeated": torch.diag(torch.tensor([2.0] * 9 + [0.0] * 10 + [-1.0] * 5)),
}


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("probes", [1, 8])
@pytest.mark.parametrize("steps", [1, 32])
@pytest.mark.parametrize("max_basis", [None, 1])
def test_every_statistic_covers_the_truth(name: str, probes: int, steps: int, max_basis: int | None) -> None:
    """Within four stated errors of the dense eigenvalues, also for one probe and for one step."""
    matrix = MATRICES[name]
    values = torch.linalg.eigvalsh(matrix.double())
    sizes = values.abs()
    spectrum = spectral_density(matrix, probes=probes, steps=steps, max_basis=max_basis)
    assert spectrum.nodes.shape == spectrum.weights.shape == spectrum.residuals.shape == (probes, steps)
    torch.testing.assert_close(spectrum.weights.sum(dim=1), torch.ones(probes, dtype=torch.float64))
    _within(spectrum.trace, float(values.sum()))
    _within(spectrum.frobenius, float(values.norm()))
    scale = spectrum.near_zero / 1e-4
    _within(spectrum.near_zero_mass, float((sizes <= 1e-4 * scale + 1e-9).double().mean()))
    _within(spectrum.negative_mass, float((values < -1e-4 * scale - 1e-9).double().mean()))
    for low, high in ((-math.inf, 0.4), (0.4, math.inf), (-0.7, 1.3)):
        _within(spectrum.mass(low, high), float(((values >= low) & (values <= high)).double().mean()))
    if float(sizes.sum()) < 1e-9:
        assert not spectrum.effective_rank.determined
        assert not spectrum.participation_ratio.determined
    else:
        shares = sizes / sizes.sum()
        _within(spectrum.effective_rank, math.exp(-float(torch.xlogy(shares, shares).sum())))
        _within(spectrum.participation_ratio, float(sizes.sum() ** 2 / sizes.square().sum()))
    rounding = 1e-5 * max(1.0, float(sizes.max()))
    assert spectrum.largest.value <= float(values[-1]) + rounding
    assert spectrum.smallest.value >= float(values[0]) - rounding
    assert float((values - spectrum.largest.value).abs().min()) <= spectrum.largest.error + rounding


@pytest.mark.parametrize("name", ["identity", "P = 1", "zero"])
def test_one_eigenvalue_leaves_nothing_to_chance(name: str) -> None:
    spectrum = spectral_density(MATRICES[name], probes=1)
    assert spectrum.trace.value == pytest.approx(float(MATRICES[name].trace()), rel=1e-6)
    assert spectrum.trace.error <= 1e-5 * abs(spectrum.trace.value)
    assert spectrum.mass(-math.inf, math.inf).value == 1.0


def test_marchenko_pastur() -> None:
    """P parameters, N < P examples: P − N zeros, and an edge at (1 + √(P/N))²."""
    spectrum = spectral_density(_marchenko_pastur(600, 300), probes=8, steps=64)
    for share in (spectrum.near_zero_mass, spectrum.mass(0.0, 0.0), spectrum.mass(-math.inf, 0.05)):
        _within(share, 0.5, sigmas=3)
        assert share.error < 0.02
    assert spectrum.negative_mass.value < 1e-10
    edge = (1 + math.sqrt(2)) ** 2
    assert abs(spectrum.largest.value - edge) < 0.05 * edge
    _within(spectrum.trace, 600.0, sigmas=4)


def test_semicircle() -> None:
    """Shares of the semicircle of radius 2 in closed form, thresholds in the thick of the bulk."""
    spectrum = spectral_density(_wigner(600), probes=8, steps=64)
    for x in (-1.0, 0.0, 0.5, 1.5):
        share = 0.5 + x * math.sqrt(4 - x * x) / (4 * math.pi) + math.asin(x / 2) / math.pi
        _within(spectrum.mass(-math.inf, x), share, sigmas=3)
        assert spectrum.mass(-math.inf, x).error < 0.03


def test_negative_mass_of_a_saddle() -> None:
    values = torch.cat([torch.linspace(-3, -1, 30), torch.zeros(50), torch.linspace(1, 4, 120)])
    spectrum = spectral_density(torch.diag(values), steps=48)
    _within(spectrum.negative_mass, 0.15, sigmas=3)
    _within(spectrum.near_zero_mass, 0.25, sigmas=3)
    _within(spectrum.positive_mass, 0.60, sigmas=3)
    assert spectrum.negative_mass.error < 0.02
    total = sum(part.value for part in (spectrum.negative_mass, spectrum.near_zero_mass, spectrum.positive_mass))
    assert total == pytest.approx(1.0, abs=1e-12)


def test_what_the_steps_cannot_resolve_is_in_the_error() -> None:
    """A threshold in a gap that is too narrow for the steps: the error owns up, and more steps settle it."""
    values = torch.cat([torch.linspace(-10, -1, 600), torch.full((600,), 0.3), torch.linspace(1, 10, 800)])
    few, many = (spectral_density(torch.diag(values.double()), steps=steps).mass(-math.inf, -0.3) for steps in (6, 64))
    for estimate in (few, many):
        _within(estimate, 0.3, sigmas=3)
    assert few.error > 0.05
    assert many.error < 0.01


def test_a_share_counts_both_ends() -> None:
    spectrum = spectral_density(torch.diag(torch.tensor([0.0, 0.0, 1.0, 1.0, 2.0, 2.0], dtype=torch.float64)))
    assert spectrum.mass(0, 2).value == pytest.approx(1.0, abs=1e-12)
    assert spectrum.mass(0, 1).value + spectrum.mass(2, 2).value == pytest.approx(1.0, abs=1e-9)
    assert spectrum.mass(1, 1).value == pytest.approx(1 - spectrum.mass(0, 0).value - spectrum.mass(2, 2).value)


@pytest.mark.parametrize(
    ("f", "of_values"),
    [
        (lambda x: torch.log(x + 1), lambda x: numpy.log(x + 1)),
        (lambda x: numpy.exp(-x), lambda x: numpy.exp(-x)),
        (lambda x: x / (x + 0.1), lambda x: x / (x + 0.1)),
        (lambda x: x**2, lambda x: x**2),
        (lambda x: 0 * x + 1, lambda x: 0 * x + 1),
    ],
    ids=["log determinant, torch", "heat kernel, numpy", "effective dimension", "square", "one"],
)
def test_functions_of_the_matrix(f: object, of_values: object) -> None:
    values = torch.linspace(0, 4, 80, dtype=torch.float64)
    estimate = spectral_function(torch.diag(values), f, probes=8, steps=24)
    _within(estimate, float(of_values(values.numpy()).sum()), sigmas=3)
    assert estimate.error < 0.1 * estimate.value


def test_quadrature_error_of_a_function_is_stated() -> None:
    """Few steps on a function that bends sharply: the draw alone would be near exact, the rule is far off."""
    values = torch.logspace(-6, 0, 3000, dtype=torch.float64)
    estimate = spectral_function(torch.diag(values), lambda x: torch.log(x + 1e-4), probes=4, steps=6)
    truth = float(torch.log(values + 1e-4).sum())
    assert abs(estimate.value - truth) > 1000
    _within(estimate, truth, sigmas=2)
    settled = spectral_function(torch.diag(values), lambda x: torch.log(x + 1e-4), probes=4, steps=64)
    _within(settled, truth, sigmas=3)
    assert settled.error < 0.25 * estimate.error


def test_a_function_that_is_not_finite_names_the_eigenvalue() -> None:
    spectrum = spectral_density(torch.diag(torch.tensor([-2.0, 1.0, 3.0])))
    with pytest.raises(DiagnosticsError, match=r"f\(-2\) = nan.*damping"):
        spectrum.function(torch.log)
    with pytest.raises(DiagnosticsError, match="entry by entry"):
        spectrum.function(lambda x: x.sum())


def test_density_integrates_to_one_and_shows_a_narrow_bulk() -> None:
    """A bulk at 1e-5 of the range that holds 99.7 %: drawn with all its mass where it is."""
    values = torch.cat([1e-3 * torch.rand(2991, generator=GENERATOR), torch.linspace(1, 100, 9)])
    spectrum = spectral_density(torch.diag(values.double()), probes=4, steps=40)
    grid = spectrum.grid(2000)
    axis, density = spectrum.to_axis(grid), spectrum.density(grid)
    assert float(torch.trapezoid(density, axis)) == pytest.approx(1.0, abs=1e-3)
    bulk = grid < 0.1
    assert float(torch.trapezoid(density[bulk], axis[bulk])) == pytest.approx(0.997, abs=2e-3)
    narrow = spectrum.density(grid, width=0.05)
    assert float(torch.trapezoid(narrow, axis)) == pytest.approx(1.0, abs=1e-2)
    assert float(narrow.max()) > float(density.max())


@pytest.mark.parametrize("name", ["zero", "identity", "P = 1"])
def test_a_single_point_can_be_drawn(name: str) -> None:
    spectrum = spectral_density(MATRICES[name], probes=2, steps=4)
    grid = spectrum.grid(200)
    area = torch.trapezoid(spectrum.density(grid), spectrum.to_axis(grid))
    assert float(area) == pytest.approx(1.0, abs=1e-3)


def test_a_spectrum_can_be_put_together_from_what_was_written_down() -> None:
    """Nodes, weights and residuals are all that the statistics need."""
    spectrum = spectral_density(MATRICES["semicircle"], probes=2, steps=10)
    raw = torch.stack([spectrum.nodes, spectrum.weights, spectrum.residuals]).numpy()
    again = Spectrum(
        *(torch.from_numpy(part) for part in raw),
        dimension=spectrum.dimension,
        matvecs=spectrum.matvecs,
        rounding=spectrum.rounding,
        orthogonal=spectrum.orthogonal,
        how=spectrum.how,
    )
    assert str(again) == str(spectrum)


@pytest.mark.parametrize("name", MATRICES)
def test_what_a_person_reads(name: str) -> None:
    spectrum = spectral_density(MATRICES[name])
    text = str(spectrum)
    assert max(len(line) for line in text.splitlines()) <= 80
    for word in ("eigenvalues from", "trace", "negative", "outlier", "seed 0", f"{spectrum.matvecs} products"):
        assert word in " ".join(text.split())
    assert repr(spectrum) == f"Spectrum({text})"


def test_seeds_repeat_and_differ() -> None:
    first, again, other = (spectral_density(MATRICES["semicircle"], steps=5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.nodes, again.nodes)
    assert not torch.equal(first.nodes, other.nodes)


@pytest.mark.parametrize(
    "settings", [{"probes": 0}, {"steps": 0}, {"max_basis": 0}, {"probes": 2.5}, {"steps": True}], ids=str
)
def test_settings_out_of_range(settings: dict[str, object]) -> None:
    (name,) = settings
    with pytest.raises(DiagnosticsError, match=f"{name} is out of range"):
        spectral_density(torch.eye(3), **settings)


def test_other_arguments_out_of_range() -> None:
    spectrum = spectral_density(torch.eye(3))
    with pytest.raises(DiagnosticsError, match="not square"):
        spectral_density(torch.ones(2, 3))
    with pytest.raises(DiagnosticsError, match="low <= high"):
        spectrum.mass(1.0, 0.0)
    with pytest.raises(DiagnosticsError, match="low <= high"):
        spectrum.mass(math.nan, 0.0)
    with pytest.raises(DiagnosticsError, match="width"):
        spectrum.density(spectrum.grid(), width=0.0)
    with pytest.raises(DiagnosticsError, match="points"):
        spectrum.grid(1)


def test_a_default_device_and_autocast_change_nothing() -> None:
    matrix = torch.diag(torch.linspace(-1.0, 3.0, 90)) + 0.01
    expected = spectral_density(matrix)
    text, curve, root = str(expected), expected.density(expected.grid(30)), expected.function(torch.cosh)
    with torch.device("meta"), torch.autocast("cpu"):
        spectrum = spectral_density(matrix)
        assert str(spectrum) == text
        assert torch.equal(spectrum.density(spectrum.grid(30)), curve)
        assert spectrum.function(torch.cosh) == root


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e20])
def test_the_statistics_of_single_precision_at_any_scale(scale: float) -> None:
    matrix = torch.diag(torch.linspace(0.1, 3.0, 100))
    spectrum = spectral_density(scale * matrix)
    assert spectrum.largest.value / scale == pytest.approx(3.0, rel=1e-5)
    _within(spectrum.frobenius, scale * float(matrix.norm()))
    assert spectrum.effective_rank.value == pytest.approx(spectral_density(matrix).effective_rank.value, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_matrices_that_are_not_real_floating_point_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(DiagnosticsError, match="not real floating-point"):
        spectral_density(torch.eye(5).to(dtype))


def test_arguments_of_another_type() -> None:
    spectrum = spectral_density(torch.diag(torch.linspace(0.0, 1.0, 20)))
    with pytest.raises(DiagnosticsError, match="low is not a number"):
        spectrum.mass("a", "b")
    with pytest.raises(DiagnosticsError, match="high is not a number"):
        spectrum.mass(0.0, None)
    for points in (2.5, "a", None):
        with pytest.raises(DiagnosticsError, match="points is too small or no whole number"):
            spectrum.grid(points)
    for grid in ("a", None, 1.0, [[0.0, 1.0]], [1j]):
        with pytest.raises(DiagnosticsError, match="grid is not a row of numbers"):
            spectrum.density(grid)
    with pytest.raises(DiagnosticsError, match="width is not a number"):
        spectrum.density(spectrum.grid(5), width="a")
    for f in (None, "log", 1.0):
        with pytest.raises(DiagnosticsError, match="f is not a function"):
            spectrum.function(f)
    for f in (lambda x: None, lambda x: "a", lambda x: 1j * x, lambda x: 1j * x.numpy()):
        with pytest.raises(DiagnosticsError, match="f does not return real numbers"):
            spectrum.function(f)
    grid = spectrum.grid(5)
    assert torch.equal(spectrum.density(grid.tolist()), spectrum.density(grid))
    assert torch.equal(spectrum.density(grid.numpy(), width=numpy.float32(0.5)), spectrum.density(grid, width=0.5))
