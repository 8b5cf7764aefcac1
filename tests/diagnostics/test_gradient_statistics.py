"""What the Gram matrix of single examples' gradients says, against loops over the gradients themselves, planted cases
and their controls; and that intervals cover.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy
import pytest
import torch
from torch import Tensor, nn

from diagnostics import (
    DiagnosticsError,
    EmpiricalFisher,
    Estimate,
    Objective,
    batch_size_tests,
    clipping,
    empirical_fisher_spectrum,
    gradient_alignment,
    gradient_conflict,
    gradient_gram,
    group_conflict,
    top_eigenpairs,
)
from diagnostics.noise.gram import GradientGram
from tests.reference import gradient_statistics as slow
from tests.reference.per_example_loops import gradients


def gram_of(rows: numpy.ndarray) -> GradientGram:
    matrix = torch.from_numpy(numpy.asarray(rows, dtype=numpy.float64))
    return GradientGram(matrix @ matrix.T, {}, "by hand")


def drawn(seed: int, count: int = 12, width: int = 5) -> numpy.ndarray:
    random = numpy.random.default_rng(seed)
    return numpy.eye(width)[0] + numpy.linspace(0.3, 1.2, width) * random.standard_normal((count, width))


def network(count: int = 14) -> tuple[Objective, Tensor]:
    """A classifier, and the gradients of its examples, one backward pass each."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(count, 3).double(), torch.randint(3, (count,))
    objective = Objective(model, nn.CrossEntropyLoss(), [(x[:5], y[:5]), (x[5:], y[5:])])
    loss = nn.CrossEntropyLoss()
    return objective, gradients(model, lambda m, i: loss(m(x[i : i + 1]), y[i : i + 1]), count)


def covered(truth: float, measure: Callable[[int], Estimate], seeds: int) -> float:
    held = 0
    for seed in range(seeds):
        found = measure(seed)
        low, high = found.interval()
        held += found.determined and low <= truth <= high
    return held / seeds


def test_cosines_are_those_of_a_loop_over_pairs() -> None:
    objective, rows = network()
    found, cosines = gradient_alignment(objective), slow.cosines(rows.numpy())
    assert float(found.mean_cosine) == pytest.approx(numpy.mean(cosines), rel=1e-9)
    assert float(found.lowest_cosine) == pytest.approx(min(cosines), rel=1e-9)
    assert float(found.opposed) == pytest.approx(numpy.mean(numpy.array(cosines) < 0), rel=1e-9)
    pair = list(itertools.combinations(range(14), 2))[int(numpy.argmin(cosines))]
    assert tuple(sorted(found.pair)) == pair
    whole = rows.sum(0)
    assert float(found.diversity) == pytest.approx(14 * float(rows.square().sum() / whole.square().sum()), rel=1e-9)
    assert "most opposed" in str(found)


def test_extremes_of_alignment() -> None:
    """Orthogonal gradients: 0 and N; equal ones: 1 and 1; one and its opposite: −1."""
    orthogonal, equal = gradient_alignment(gram_of(numpy.eye(6))), gradient_alignment(gram_of(numpy.ones((6, 2))))
    assert float(orthogonal.mean_cosine) == float(orthogonal.lowest_cosine) == float(orthogonal.opposed) == 0.0
    assert float(orthogonal.diversity) == pytest.approx(6)
    assert float(equal.mean_cosine) == pytest.approx(1)
    assert float(equal.diversity) == pytest.approx(1)
    two = gradient_alignment(gram_of(numpy.array([[1.0], [-1.0], [2.0], [-2.0]])))
    assert float(two.lowest_cosine) == -1.0
    assert not two.diversity.determined
    assert "zero" in two.diversity.how


def test_examples_without_a_gradient_are_in_no_pair() -> None:
    rows = numpy.concatenate([drawn(0), numpy.zeros((3, 5))])
    found, without = gradient_alignment(gram_of(rows)), gradient_alignment(gram_of(rows[:12]))
    assert found.zero == 3
    assert found.mean_cosine == without.mean_cosine
    assert float(found.diversity) == pytest.approx(15 / 12 * float(without.diversity))
    with pytest.raises(DiagnosticsError, match="too few examples have a gradient"):
        gradient_alignment(gram_of(numpy.zeros((9, 2))))


def test_intervals_of_the_mean_cosine_cover() -> None:
    """Of Gaussian gradients, whose mean cosine a large sample tells."""
    truth = float(gradient_alignment(gram_of(drawn(1, 4000))).mean_cosine)
    assert 0.90 <= covered(truth, lambda seed: gradient_alignment(gram_of(drawn(seed, 60))).mean_cosine, 300) <= 0.98


@pytest.mark.parametrize("name", ["norm", "inner_product", "orthogonality"])
def test_smallest_batches_are_those_of_the_definitions(name: str) -> None:
    rows, place = drawn(3, 30), ["norm", "inner_product", "orthogonality"].index(name)
    found = getattr(batch_size_tests(gram_of(rows), theta=0.8, nu=2.0), name)
    twin = slow.jackknifed(lambda some: slow.smallest_batches(some, 0.8, 2.0)[place], rows)
    assert float(found) == pytest.approx(twin, rel=1e-9)


@pytest.mark.parametrize("name", ["norm", "inner_product", "orthogonality"])
def test_intervals_of_the_smallest_batches_cover(name: str) -> None:
    """Σ = diag, G = e₁: tr Σ, Σ₁₁ and the rest, at θ = ν = 1."""
    variances = numpy.square(numpy.linspace(0.3, 1.2, 5))
    truth = {"norm": variances.sum(), "inner_product": variances[0], "orthogonality": variances[1:].sum()}[name]
    measure = lambda seed: getattr(batch_size_tests(gram_of(drawn(seed, 150)), theta=1, nu=1), name)  # noqa: E731
    assert 0.90 <= covered(truth, measure, 150) <= 0.99


def test_batch_size_tests_need_a_gradient_that_is_seen() -> None:
    rows = drawn(0, 40) - numpy.eye(5)[0]
    found = batch_size_tests(gram_of(rows))
    assert not found.norm.determined
    assert "reaches zero" in str(found)
    passed = batch_size_tests(gram_of(drawn(0, 400)))
    assert passed.augmented in (passed.inner_product, passed.orthogonality)
    assert float(passed.augmented) < float(passed.norm)
    with pytest.raises(DiagnosticsError, match="too few"):
        batch_size_tests(gram_of(drawn(0, 3)))
    with pytest.raises(DiagnosticsError, match="theta is not positive"):
        batch_size_tests(gram_of(drawn(0)), theta=0)


def test_the_spectrum_of_gradients_is_that_of_the_matrices() -> None:
    objective, rows = network()
    found = empirical_fisher_spectrum(objective)
    fisher = numpy.linalg.eigvalsh(rows.numpy().T @ rows.numpy() / 14)[::-1]
    assert found.eigenvalues == pytest.approx(fisher[:14], rel=1e-9, abs=1e-15)
    assert found.covariance == pytest.approx(
        numpy.linalg.eigvalsh(slow.covariance(rows.numpy()))[::-1][:14], rel=1e-9, abs=1e-15
    )
    largest = top_eigenpairs(EmpiricalFisher(objective), k=1, tol=1e-9).values[0]
    assert float(found.largest) == pytest.approx(float(largest), rel=1e-6)
    planted = numpy.zeros((200, 9))
    planted[:, :3] = numpy.random.default_rng(0).standard_normal((200, 3))
    assert float(empirical_fisher_spectrum(gram_of(planted)).effective_directions) == pytest.approx(3, rel=0.05)


def test_clipping_of_examples_is_exact() -> None:
    objective, rows = network()
    limit = float(rows.norm(dim=1).median())
    found, mean = clipping(objective, limit), rows.mean(0).numpy()
    clipped, rate = slow.clipped_mean(rows.numpy(), limit, [(i,) for i in range(14)])
    whole = float(mean @ mean)
    kept = float(clipped @ mean) / whole
    assert float(found.rate) == pytest.approx(rate)
    assert float(found.kept) == pytest.approx(kept, rel=1e-9)
    assert float(found.bias) == pytest.approx(numpy.linalg.norm(clipped - mean) / math.sqrt(whole), rel=1e-9)
    assert float(found.sideways) == pytest.approx(numpy.linalg.norm(clipped - kept * mean) / math.sqrt(whole), rel=1e-7)
    assert found.rate.kind == found.bias.kind == "exact"


def test_clipping_of_batches_is_that_of_all_of_them_within_its_error() -> None:
    """Every batch of 3 out of 14, against draws."""
    rows = drawn(5, 14)
    found = clipping(gram_of(rows), 0.9, 3, draws=4000)
    clipped, rate = slow.clipped_mean(rows, 0.9, list(itertools.combinations(range(14), 3)))
    mean = rows.mean(0)
    whole = float(mean @ mean)
    truths = {
        "rate": rate,
        "kept": float(clipped @ mean) / whole,
        "bias": numpy.linalg.norm(clipped - mean) / math.sqrt(whole),
        "sideways": numpy.linalg.norm(clipped - float(clipped @ mean) / whole * mean) / math.sqrt(whole),
    }
    for name, truth in truths.items():
        estimate = getattr(found, name)
        assert abs(float(estimate) - truth) < 3 * estimate.error < 0.3, name


def test_a_high_threshold_clips_nothing_and_a_low_one_everything() -> None:
    gram = gram_of(drawn(0, 40))
    nothing, all_of_it = clipping(gram, 1e3, 8), clipping(gram, 1e-3, 8)
    assert float(nothing.rate) == 0.0
    assert nothing.rate.kind == "bound"
    assert float(nothing.kept) == 1.0
    assert "no batch was clipped" in nothing.bias.how
    assert float(all_of_it.rate) == 1.0
    assert float(all_of_it.kept) < 0.01
    for bad in ({"max_norm": 0}, {"max_norm": 1, "batch_size": 41}, {"max_norm": 1, "batch_size": 3, "draws": 5}):
        with pytest.raises(DiagnosticsError):
            clipping(gram, **bad)
    match = "more batches than are held at once; given: 1,000,000,000 from 40 examples; expected: at most 3,355,443"
    with pytest.raises(DiagnosticsError, match=match):
        clipping(gram, 1.0, 8, draws=10**9)


def domains(angle: float, seed: int, count: int = 60) -> tuple[GradientGram, list[str]]:
    """Two groups whose true gradients are at an angle, in noise of twice their size."""
    random = numpy.random.default_rng(seed)
    means = numpy.array([[1.0, 0.0, 0, 0], [math.cos(angle), math.sin(angle), 0, 0]])
    rows = numpy.repeat(means, count, axis=0) + random.standard_normal((2 * count, 4))
    return gram_of(rows), ["a"] * count + ["b"] * count


@pytest.mark.parametrize("degrees", [60, 100, 150])
def test_intervals_of_the_cosine_between_groups_cover(degrees: int) -> None:
    angle = math.radians(degrees)
    measure = lambda seed: group_conflict(*domains(angle, seed)).pairs[0].cosine  # noqa: E731
    assert 0.91 <= covered(math.cos(angle), measure, 300) <= 0.99


def test_noise_along_the_gradient_turns_nothing() -> None:
    """Groups whose examples differ in length alone have a cosine of 1, which was 1 + σ²/n with a small error."""

    def measure(seed: int) -> Estimate:
        random = numpy.random.default_rng(seed)
        rows = numpy.eye(20)[:1] * (1 + 0.5 * random.standard_normal((60, 1))) + 0.02 * random.standard_normal((60, 20))
        return group_conflict(gram_of(rows), ["a", "b"] * 30).pairs[0].cosine

    assert covered(1.0, measure, 100) > 0.9
    assert abs(numpy.mean([float(measure(seed)) for seed in range(100)]) - 1.0) < 1e-3


def test_small_groups_are_told_and_labels_that_print_alike_are_two() -> None:
    gram, _ = domains(math.radians(60), 0, 10)
    found = group_conflict(gram, ["1"] * 9 + ["once"] + [1] * 7 + [None] * 3)
    assert [(pair.first, pair.second) for pair in found.pairs] == [
        ("'1'", "1"),
        ("'1'", "once"),
        ("'1'", "None"),
        ("once", "1"),
        ("once", "None"),
        ("1", "None"),
    ]
    assert [pair.cosine.determined for pair in found.pairs[1:]] == [False] * 5
    assert "'1' against once: cosine undetermined ('once' has 1 example, and at least 4 are needed)" in str(found)
    whole = group_conflict(gram, torch.tensor([0] * 10 + [1] * 10))
    assert (whole.pairs[0].first, whole.pairs[0].second) == ("0", "1")
    with pytest.raises(DiagnosticsError, match="1 of 7 with at least 4 examples"):
        group_conflict(gram, ["all"] * 10 + [0, 1, 2, 3, 3, 4, 4, 4, 5, 5])


def test_groups_that_conflict_are_found_and_others_are_not() -> None:
    """Sick: 150 degrees. Healthy: 60. Undetermined: a group without a direction."""
    assert len(group_conflict(*domains(math.radians(150), 0)).conflicting) == 1
    assert sum(bool(group_conflict(*domains(math.radians(60), seed)).conflicting) for seed in range(50)) == 0
    gram, labels = domains(0.0, 0)
    rows = numpy.random.default_rng(0).standard_normal((120, 4))
    none = group_conflict(gram_of(rows), labels)
    assert not none.pairs[0].cosine.determined
    assert "reaches zero" in str(none)
    with pytest.raises(DiagnosticsError, match="do not fit"):
        group_conflict(gram, labels[1:])
    with pytest.raises(DiagnosticsError, match="not several"):
        group_conflict(gram, ["a"] * 120)


def test_losses_and_domains_on_one_model() -> None:
    """Domains have errors; losses on the same examples are exact for them. Against gradients one by one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x, y = torch.randn(50, 3).double(), torch.randn(50, 1).double() + 3
    up, down = (
        Objective(model, nn.MSELoss(), (x[s], sign * y[s])) for s, sign in ((slice(25), 1), (slice(25, 50), -1))
    )
    found = gradient_conflict({"up": up, "down": down})
    rows = [
        gradients(model, lambda m, i, s=s, t=t: nn.MSELoss()(m(x[s + i : s + i + 1]), t * y[s + i : s + i + 1]), 25)
        for s, t in ((0, 1), (25, -1))
    ]
    gram = gram_of(torch.cat(rows).numpy())
    twin = group_conflict(gram, ["up"] * 25 + ["down"] * 25)
    assert float(found.pairs[0].cosine) == pytest.approx(float(twin.pairs[0].cosine), rel=1e-8)
    assert found.pairs[0].cosine.error == pytest.approx(twin.pairs[0].cosine.error, rel=1e-8)
    assert found.pairs[0].conflicting
    same = gradient_conflict({"mse": up, "l1": Objective(model, nn.L1Loss(), (x[:25], y[:25]))})
    one, other = up.gradient(), Objective(model, nn.L1Loss(), (x[:25], y[:25])).gradient()
    assert float(same.pairs[0].cosine) == pytest.approx(float(torch.cosine_similarity(one, other, dim=0)), rel=1e-9)
    assert same.pairs[0].cosine.kind == "exact"
    with pytest.raises(DiagnosticsError, match="not several"):
        gradient_conflict({"up": up})
    with pytest.raises(DiagnosticsError, match="same model"):
        gradient_conflict({"up": up, "else": network()[0]})


def test_one_gram_serves_all_of_them() -> None:
    objective, _ = network()
    gram = gradient_gram(objective)
    assert gradient_alignment(gram).mean_cosine == gradient_alignment(objective).mean_cosine
    assert batch_size_tests(gram).norm == batch_size_tests(objective).norm
