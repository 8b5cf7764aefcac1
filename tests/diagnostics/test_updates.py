"""Statistics of a step against dense decompositions, and where their size is known."""

from __future__ import annotations

import math
import time

import pytest
import torch
from torch import nn

from diagnostics import DiagnosticsError, update_statistics
from diagnostics.learning_rate.updates import DENSE, largest_singular_value, operator_norm_ratio, stable_rank
from tests.reference import update_loops


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (6, 3, 2, 2), (1, 5), (5, 1)])
def test_every_number_against_the_twin(shape: tuple[int, ...]) -> None:
    initial, before = (torch.randn(shape, dtype=torch.float64) for _ in range(2))
    after = before + 0.01 * torch.randn(shape, dtype=torch.float64)
    delta = after - before
    found = update_statistics(before, after, initial=initial, lr=0.3)
    flat, change = before.flatten(1), delta.flatten(1)
    ratios = change.norm(dim=1) / flat.norm(dim=1)
    expected = {
        "relative": delta.norm() / before.norm(),
        "relative_rows": ratios.square().mean().sqrt(),
        "trust_ratio": 0.3 * before.norm() / delta.norm(),
        "operator_norm_ratio": update_loops.operator_norm_ratio(after),
        "update_norm_ratio": update_loops.operator_norm_ratio(delta),
        "update_stable_rank": update_loops.stable_rank(delta),
        "drift_stable_rank": update_loops.stable_rank(after - initial),
        "distance": (after - initial).norm() / initial.norm(),
    }
    for name, value in expected.items():
        assert getattr(found, name).value == pytest.approx(float(value), rel=1e-9), name
    assert found.relative_rows.error == pytest.approx(float(ratios.std(correction=0)), abs=1e-12)


@pytest.mark.parametrize(("rows", "columns"), [(64, 16), (16, 64), (32, 32)])
def test_an_orthogonal_matrix_scaled_by_the_fans_has_norm_one(rows: int, columns: int) -> None:
    weight = nn.init.orthogonal_(torch.empty(rows, columns)) * math.sqrt(rows / columns)
    assert operator_norm_ratio(weight).value == pytest.approx(1.0, rel=1e-5)
    assert stable_rank(weight).value == pytest.approx(min(rows, columns), rel=1e-5)
    assert operator_norm_ratio(3 * weight).value == pytest.approx(3.0, rel=1e-5)


def test_a_convolution_counts_as_its_action_on_patches() -> None:
    """That bounds the norm of the whole convolution, and is it where all taps are one matrix: σ(A)/√(co/ci)."""
    weight = torch.randn(6, 4, 3, 3)
    whole = update_loops.convolved_norm(weight, 8) / math.sqrt(6 / 4)
    assert operator_norm_ratio(weight).value >= whole * (1 - 1e-6)
    tap = torch.randn(6, 4)
    even = (tap / 9)[:, :, None, None].expand(6, 4, 3, 3)
    assert operator_norm_ratio(even).value == pytest.approx(update_loops.operator_norm_ratio(tap), rel=1e-5)
    assert update_loops.convolved_norm(even, 8) / math.sqrt(6 / 4) == pytest.approx(
        update_loops.operator_norm_ratio(tap), rel=1e-5
    )


def test_ranks_whose_value_is_known() -> None:
    """σ = .5^k in 20 dimensions: 4/3; σ = 1/k in 100: 1.63498. An update of rank one has rank one."""
    halves = torch.diag(0.5 ** torch.arange(20.0, dtype=torch.float64))
    harmonic = torch.diag(1 / torch.arange(1.0, 101.0, dtype=torch.float64))
    assert stable_rank(halves).value == pytest.approx(4 / 3, rel=1e-9)
    assert stable_rank(harmonic).value == pytest.approx(1.63498, rel=1e-5)
    before = torch.randn(20, 30)
    step = update_statistics(before, before + 1e-3 * torch.outer(torch.randn(20), torch.randn(30)))
    assert step.update_stable_rank.value == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_sizes_whose_squares_leave_the_range_of_float32(size: float) -> None:
    weight = torch.randn(8, 5)
    expected = float(update_loops.singular_values(weight)[0]) * size
    assert largest_singular_value(weight * size).value == pytest.approx(expected, rel=1e-5)


def test_a_matrix_too_large_to_decompose_has_a_value_within_its_error() -> None:
    torch.manual_seed(1)
    left, _ = torch.linalg.qr(torch.randn(DENSE + 60, 40))
    right, _ = torch.linalg.qr(torch.randn(DENSE + 30, 40))
    weight = left @ torch.diag(torch.linspace(3.0, 1.0, 40)) @ right.T
    found = largest_singular_value(weight)
    assert found.kind == "residual"
    assert "Lanczos" in found.how
    assert abs(found.value - 3.0) <= found.error + 1e-5
    assert found.error < 0.02


def test_an_embedding_of_a_language_model_takes_less_than_a_second_each() -> None:
    """50 000 × 768 on one core; the fastest of two, for the machine is shared."""
    weight = torch.randn(50_000, 768)
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        largest_singular_value(weight)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 1.0


def test_what_is_not_defined_has_no_value_and_says_why() -> None:
    weight = torch.randn(3, 4)
    still = update_statistics(weight, weight, initial=weight)
    assert still.relative.value == 0.0
    assert still.update_norm_ratio.value == 0.0
    for name, reason in (
        ("trust_ratio", "moved nothing"),
        ("update_stable_rank", "zero"),
        ("drift_stable_rank", "zero"),
    ):
        assert not getattr(still, name).determined
        assert reason in getattr(still, name).how
    born = update_statistics(torch.zeros(3, 4), weight)
    assert not born.relative.determined
    assert not born.relative_rows.determined
    assert born.distance is None
    vector = update_statistics(torch.ones(4), torch.ones(4) * 1.1)
    assert vector.relative.value == pytest.approx(0.1, rel=1e-5)
    assert (vector.operator_norm_ratio, vector.update_stable_rank) == (None, None)


def test_refusals() -> None:
    weight = torch.ones(2, 2)
    with pytest.raises(DiagnosticsError, match="not one weight at two times"):
        update_statistics(weight, torch.ones(2, 3))
    with pytest.raises(DiagnosticsError, match="not one weight at two times"):
        update_statistics(weight, weight, initial=torch.ones(4))
    with pytest.raises(DiagnosticsError, match="the weight is not finite; given: norm 2, change nan"):
        update_statistics(weight, weight * torch.nan)
    with pytest.raises(DiagnosticsError, match="the weight is not finite"):
        largest_singular_value(weight * torch.inf)
    for wrong in (torch.empty(0, 3), torch.ones(2, 2, dtype=torch.complex64)):
        for measure in (largest_singular_value, operator_norm_ratio, stable_rank):
            with pytest.raises(DiagnosticsError, match="expected: one shape, with entries, and real numbers"):
                measure(wrong)


def test_half_precision_weights_have_exact_differences() -> None:
    initial, before, after = (torch.randn(5, 6).bfloat16() for _ in range(3))
    found = update_statistics(before, after, initial=initial)
    exactly = update_statistics(before.double(), after.double(), initial=initial.double())
    assert found.distance.value == pytest.approx(exactly.distance.value, rel=1e-6)
    assert found.update_norm_ratio.value == pytest.approx(exactly.update_norm_ratio.value, rel=1e-6)


def test_what_is_printed_is_one_line_for_each_number_and_the_reason_where_there_is_none() -> None:
    text = str(update_statistics(torch.zeros(2, 2), torch.eye(2)))
    assert "update_stable_rank   2" in text
    assert "relative             undetermined (the weight was all zero)" in text
    assert "distance" not in text


def test_something_else_than_a_weight_is_refused() -> None:
    with pytest.raises(DiagnosticsError, match=r"not tensors; given: list.*one call for each tensor"):
        update_statistics(torch.eye(2), [torch.eye(2)])
