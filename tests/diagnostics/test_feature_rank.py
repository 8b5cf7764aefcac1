"""Five ranks of features: closed forms, the decomposition's own values, shapes, and what has no rank."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diagnostics import DiagnosticsError, feature_rank
from tests.reference.singular_values import ranks_of

RANKS = ("srank", "effective_rank", "stable_rank", "participation_ratio", "approximate_rank")


def planted(sigma: Tensor, samples: int) -> Tensor:
    """Features with these singular values, in directions of their own."""
    left = torch.linalg.qr(torch.randn(samples, len(sigma), dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(len(sigma), len(sigma), dtype=torch.float64)).Q
    return left * sigma @ right


@pytest.mark.parametrize("shape", ["diagonal", "tall", "wide", "float32"])
@pytest.mark.parametrize(
    ("sigma", "expected"),
    [
        (torch.ones(100), (99, 100.0, 100.0, 100.0)),
        (0.5 ** torch.arange(20.0), (7, 3.99994, 4 / 3, 5 / 3)),
        (1 / torch.arange(1.0, 101.0), (95, 39.677, 1.63498, 2.46985)),
    ],
    ids=["identity", "powers of a half", "harmonic"],
)
def test_closed_forms(sigma: Tensor, expected: tuple[float, ...], shape: str) -> None:
    sigma = sigma.double()
    features = torch.diag(sigma) if shape == "diagonal" else planted(sigma, 300)
    features = features.T if shape == "wide" else features.float() if shape == "float32" else features
    rank = feature_rank(features)
    assert rank.srank.value == expected[0]
    found = [rank.effective_rank.value, rank.stable_rank.value, rank.participation_ratio.value]
    assert found == pytest.approx(expected[1:], rel=1e-5)
    torch.testing.assert_close(rank.singular_values[: len(sigma)], sigma, rtol=1e-5, atol=1e-6)
    assert {getattr(rank, name).kind for name in RANKS} == {"exact"}


def test_exact_values_of_the_geometric_spectrum() -> None:
    """Σσ = 2 − 2⁻¹⁹ and Σσ² = (4 − 4⁻¹⁹)/3 give the ranks in closed form."""
    rank = feature_rank(planted(0.5 ** torch.arange(20, dtype=torch.float64), 50))
    assert rank.stable_rank.value == pytest.approx((4 - 4**-19) / 3, rel=1e-12)
    squares, fourths = (4 - 4**-19) / 3, (1 - 16**-20) / (1 - 1 / 16)
    assert rank.participation_ratio.value == pytest.approx(squares**2 / fourths, rel=1e-12)
    assert rank.approximate_rank.value == 4, "4⁻⁴ of Σσ² is beyond the fourth, 4⁻³ beyond the third"


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("shape", [(60, 8), (8, 60), (12, 12), (2, 5), (5, 1)], ids=str)
def test_against_a_singular_value_decomposition(shape: tuple[int, int], centred: bool) -> None:
    features = torch.randn(shape, dtype=torch.float64) * torch.logspace(0, -3, shape[1], dtype=torch.float64) + 0.7
    rank, twin = feature_rank(features, centred=centred), ranks_of(features.numpy(), centred=centred)
    for name in RANKS:
        assert getattr(rank, name).value == pytest.approx(getattr(twin, name), rel=1e-9)


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_pieces_add_up_to_the_whole(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for features in (torch.randn(30, 5), torch.randn(5, 30)):
        whole = feature_rank(features, centred=True)
        monkeypatch.setattr("diagnostics.units.rank.CHUNK", chunk)
        torch.testing.assert_close(feature_rank(features, centred=True).singular_values, whole.singular_values)
        monkeypatch.undo()


@given(st.integers(2, 12), st.integers(2, 12), st.floats(1e-3, 1e3), st.integers(0, 10**6))
def test_ranks_are_ordered_bounded_and_blind_to_scale_and_rotation(n: int, d: int, scale: float, seed: int) -> None:
    """Stable ≤ participation ≤ rank, and 1 ≤ every one of them ≤ min(n, d)."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, d, dtype=torch.float64, generator=generator)
    turn = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=generator)).Q
    rank, turned = feature_rank(features), feature_rank(scale * features @ turn)
    for name in RANKS:
        value = getattr(rank, name).value
        assert 1 - 1e-12 <= value <= min(n, d) + 1e-9
        assert getattr(turned, name).value == pytest.approx(value, rel=1e-8)
    assert rank.stable_rank.value <= rank.participation_ratio.value + 1e-9
    assert rank.approximate_rank.value <= rank.srank.value
    assert rank.participation_ratio.value <= rank.effective_rank.value + 1e-9


def test_a_mean_far_from_zero_is_a_direction_of_its_own_until_it_is_taken_away() -> None:
    features = torch.randn(500, 10, dtype=torch.float64) + 100.0
    assert feature_rank(features).srank.value == 1 or feature_rank(features).stable_rank.value < 1.01
    centred = feature_rank(features, centred=True)
    assert centred.stable_rank.value > 5
    assert "uncentred" in feature_rank(features).srank.how
    assert "uncentred" not in centred.srank.how
    torch.testing.assert_close(centred.singular_values, feature_rank(features - features.mean(0)).singular_values)


def test_spread_is_the_share_that_differs_between_samples() -> None:
    features = torch.randn(200, 10, dtype=torch.float64) + torch.arange(10.0)
    expected = float((features - features.mean(0)).norm() / features.norm())
    for centred in (False, True):
        assert feature_rank(features, centred=centred).spread.value == pytest.approx(expected)
        assert feature_rank(torch.ones(4, 3), centred=centred).spread.value == 0.0
    assert feature_rank(features - features.mean(0)).spread.value == pytest.approx(1.0)
    assert not feature_rank(torch.zeros(4, 3)).spread.determined


def test_axes_of_tokens_and_images_are_the_units_and_can_be_named() -> None:
    tokens, images = torch.randn(4, 5, 3), torch.randn(4, 3, 5, 6)
    assert (feature_rank(tokens).samples, feature_rank(tokens).units) == (20, 3)
    rank = feature_rank(images)
    assert (rank.samples, rank.units) == (120, 3)
    assert rank.singular_values.tolist() == pytest.approx(
        feature_rank(images.permute(0, 2, 3, 1).reshape(-1, 3)).singular_values.tolist()
    )
    assert (feature_rank(images, axis=-1).units, feature_rank(tokens, axis=1).units) == (6, 5)
    assert feature_rank(images.flatten(1)).units == 90
    assert "120 samples × 3 units" in rank.effective_rank.how


def test_few_samples_limit_the_rank_and_the_number_says_so() -> None:
    few, many = feature_rank(torch.randn(5, 20)), feature_rank(torch.randn(200, 20))
    assert few.limited_by_samples
    assert few.most == 5
    assert "no rank can exceed 5" in few.srank.how
    assert not many.limited_by_samples
    assert "exceed" not in many.srank.how
    assert feature_rank(torch.randn(20, 20), centred=True).most == 19
    assert not feature_rank(torch.randn(20, 20)).limited_by_samples


@pytest.mark.parametrize(
    ("features", "centred", "reason"),
    [
        (torch.zeros(6, 3), False, "the features are all zero"),
        (torch.ones(6, 3), True, "every sample has the same features"),
        (torch.randn(1, 3), True, "every sample has the same features"),
        ((torch.randn(1, 40) * 1e3).expand(64, 40), True, "every sample has the same features"),
    ],
)
def test_what_is_zero_has_no_rank(features: Tensor, centred: bool, reason: str) -> None:
    rank = feature_rank(features, centred=centred)
    for name in RANKS:
        assert math.isnan(getattr(rank, name).value)
        assert reason in getattr(rank, name).how
    assert str(rank).startswith(f"undetermined ({reason}")


@pytest.mark.parametrize("centred", [False, True])
def test_one_sample_has_no_spread(centred: bool) -> None:
    """It is not the same for every input: there is one."""
    spread = feature_rank(torch.randn(1, 3), centred=centred).spread
    assert math.isnan(spread.value)
    assert feature_rank(torch.ones(2, 3), centred=centred).spread.value == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int64, torch.bool])
def test_every_real_dtype_is_taken(dtype: torch.dtype) -> None:
    features = (8 * torch.randn(40, 6)).round().to(dtype)
    assert feature_rank(features).stable_rank.value == pytest.approx(
        ranks_of(features.double().numpy()).stable_rank, rel=1e-9
    )


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e300])
def test_squares_of_very_large_and_very_small_features_stay_in_range(scale: float) -> None:
    rank = feature_rank(torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)) * scale)
    assert rank.stable_rank.value == pytest.approx(14 / 9)
    assert rank.singular_values.tolist() == pytest.approx([3 * scale, 2 * scale, scale])


def test_a_smaller_share_needs_fewer_directions() -> None:
    features = torch.diag(0.5 ** torch.arange(20.0))
    assert [feature_rank(features, delta=delta).srank.value for delta in (0.5, 0.25, 0.1, 0.01)] == [1, 2, 4, 7]
    assert "0.9 of Σσ" in feature_rank(features, delta=0.1).srank.how


def test_arrays_are_taken_and_the_result_prints() -> None:
    rank = feature_rank(numpy.eye(3))
    assert str(rank).splitlines()[0] == "3 samples × 3 units, uncentred"
    assert [line.split() for line in str(rank).splitlines()[1:-1]] == [[name, "3"] for name in RANKS]
    assert str(rank).splitlines()[-1].split() == ["spread", "0.8165"]
    assert repr(rank) == str(rank)


def test_features_stay_as_they_were() -> None:
    features = torch.randn(8, 3, requires_grad=True)
    before, state = features.detach().clone(), torch.get_rng_state()
    feature_rank(features, centred=True)
    assert torch.equal(features.detach(), before)
    assert features.grad is None
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("features", "settings", "words"),
    [
        ([[1.0]], {}, "features are not a tensor; given: list"),
        (torch.zeros(3), {}, r"features are not samples by units; given: shape \(3,\)"),
        (torch.zeros(0, 3), {}, "features are not samples by units"),
        (torch.zeros(3, 3, dtype=torch.complex64), {}, "features are not samples by units"),
        (torch.tensor([[1.0, math.nan], [math.inf, 0.0]]), {}, "features are not finite; given: 2 of 4 values"),
        (torch.ones(2, 2), {"delta": 0.0}, "delta is out of range; given: 0.0"),
        (torch.ones(2, 2), {"delta": "a"}, "delta is out of range"),
        (torch.ones(2, 2), {"axis": 2}, "axis is none of the features'; given: 2 of shape"),
    ],
)
def test_refusals(features: object, settings: dict[str, object], words: str) -> None:
    with pytest.raises(DiagnosticsError, match=words):
        feature_rank(features, **settings)
