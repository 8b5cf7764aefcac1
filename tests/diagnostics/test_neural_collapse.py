"""Neural collapse: closed forms of a noisy simplex, the slow twin, odd sets of classes, a network that collapses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from diagnostics import DiagnosticsError, neural_collapse
from tests.reference.collapse_loops import collapse_of


def simplex(classes: int, width: int, radius: float) -> Tensor:
    """Corners of a simplex about a centre that is not the origin, turned at random; (classes, width)."""
    corners = torch.eye(classes, dtype=torch.float64) - 1 / classes
    turn = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64)).Q[:, :classes]
    return radius * math.sqrt(classes / (classes - 1)) * corners @ turn.T + 3.0


@pytest.mark.parametrize(("classes", "radius", "noise"), [(10, 4.0, 0.1), (3, 1.0, 0.2), (4, 3.0, 0.6)])
def test_variability_of_a_noisy_simplex(classes: int, radius: float, noise: float) -> None:
    """NC1 = (C − 1)² s²/(C a²), less s²/n of noise in the means and (n − 1)/n of one that is fitted."""
    each = 2000
    labels = torch.arange(classes).repeat(each)
    features = simplex(classes, 16, radius)[labels] + noise * torch.randn(len(labels), 16, dtype=torch.float64)
    collapse = neural_collapse(features, labels)
    expected = (classes - 1) ** 2 * noise**2 / (classes * radius**2)
    assert collapse.variability.value == pytest.approx(expected, rel=0.02)
    pairs = collapse.cosines[~torch.eye(classes, dtype=torch.bool)]
    assert pairs.tolist() == pytest.approx([-1 / (classes - 1)] * len(pairs), abs=0.02)
    assert collapse.norm_variation.value < 0.02
    assert collapse.variability.kind == "exact"
    assert f"{each:,} of each of {classes} classes" in collapse.variability.how


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_full_collapse_is_zero_in_all_four(classes: int) -> None:
    corners = simplex(classes, 12, 2.0)
    labels = torch.arange(classes).repeat(5)
    weight = 7 * (corners - corners.mean(0))
    collapse = neural_collapse(corners[labels], labels, weight, -weight @ corners.mean(0))
    found = (collapse.variability, collapse.norm_variation, collapse.angle_deviation, collapse.self_duality)
    assert [number.value for number in found] == pytest.approx([0.0] * 4, abs=1e-12)
    assert collapse.nearest_centre_mismatch.value == 0.0
    assert collapse.weight_norm_variation.value == pytest.approx(0.0, abs=1e-12)


def test_self_duality_is_two_where_nothing_is_common_and_four_where_all_is_opposed() -> None:
    corners = torch.eye(3, 6, dtype=torch.float64)
    labels = torch.arange(3).repeat(4)
    around = corners - corners.mean(0)
    assert neural_collapse(corners[labels], labels, weight=around.roll(3, 1)).self_duality.value == pytest.approx(2.0)
    assert neural_collapse(corners[labels], labels, weight=-around).self_duality.value == pytest.approx(4.0)


def test_norm_variation_of_two_lengths() -> None:
    """Means at −1, 0, 1 on a line lie 1, 0 and 1 from their centre; at 0, 1, 5 they lie 2, 1 and 3."""
    features, labels = torch.tensor([[0.0], [1.0], [5.0]]).repeat(2, 1), torch.arange(3).repeat(2)
    collapse = neural_collapse(features, labels)
    assert collapse.norm_variation.value == pytest.approx(math.sqrt(2 / 3) / 2)
    assert collapse.angle_deviation.value == pytest.approx((1.5 + 0.5 + 0.5) / 3), "cosines of 1, −1 and −1"


@pytest.mark.parametrize(
    "counts", [(8, 8, 8), (20, 3, 5), (1, 6, 9), (7, 0, 4), (5, 6, 0)], ids=lambda counts: "-".join(map(str, counts))
)
@pytest.mark.parametrize("width", [2, 7])
def test_against_loops_also_where_classes_are_unequal_single_or_missing(counts: tuple[int, ...], width: int) -> None:
    labels = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])
    labels = labels[torch.randperm(len(labels))]
    features = torch.randn(len(labels), width, dtype=torch.float64) + torch.randn(3, width, dtype=torch.float64)[labels]
    weight, bias = torch.randn(3, width, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    collapse = neural_collapse(features, labels, weight, bias)
    twin = collapse_of(features.numpy(), labels.numpy(), weight.numpy(), bias.numpy())
    found = (collapse.variability, collapse.norm_variation, collapse.angle_deviation, collapse.self_duality)
    expected = [twin.variability, twin.norm_variation, twin.angle_deviation, twin.self_duality]
    assert [number.value for number in found] == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert collapse.nearest_centre_mismatch.value == twin.mismatch
    assert collapse.counts.tolist() == [count for count in counts if count]
    assert ("1 with one example left out" in collapse.variability.how) == (1 in counts)


def test_pieces_add_up_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels, weight = torch.randn(50, 4), torch.arange(50) % 3, torch.randn(3, 4)
    whole = neural_collapse(features, labels, weight)
    monkeypatch.setattr("diagnostics.units.neural_collapse.CHUNK", 13)
    assert str(neural_collapse(features, labels, weight)) == str(whole)


def test_large_classes_do_not_decide_alone() -> None:
    """Ten times as many examples of one class leave a simplex a simplex."""
    corners = simplex(4, 6, 1.0)
    labels = torch.tensor([0] * 100 + [1] * 10 + [2] * 10 + [3] * 10)
    collapse = neural_collapse(corners[labels], labels)
    assert collapse.angle_deviation.value == pytest.approx(0.0, abs=1e-12)
    assert "10 to 100 of each of 4 classes, every class counting alike" in collapse.angle_deviation.how


def test_two_classes_are_always_opposed_and_the_number_says_so() -> None:
    collapse = neural_collapse(torch.randn(10, 3), torch.arange(10) % 2)
    assert collapse.angle_deviation.value == pytest.approx(0.0, abs=1e-6)
    assert "zero for any two classes" in collapse.angle_deviation.how


def test_class_means_that_coincide_leave_directions_out_and_say_so() -> None:
    """Two of three means are one: Σ_B has rank 1, and scatter outside its one direction does not count."""
    offsets = torch.tensor([[0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    means = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-2.0, 0.0]], dtype=torch.float64)
    labels = torch.arange(3).repeat(2)
    features = means[labels] + offsets.repeat_interleave(3, 0)
    collapse = neural_collapse(features, labels)
    assert collapse.variability.value == pytest.approx(0.0, abs=1e-12)
    assert "Σ_B has rank 1 only" in collapse.variability.how


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_not_defined_says_why(dtype: torch.dtype) -> None:
    once = neural_collapse(torch.randn(3, 4, dtype=dtype), torch.arange(3))
    assert "every class has one example" in once.variability.how
    assert not once.variability.determined
    assert once.norm_variation.determined
    point = neural_collapse(
        torch.full((6, 4), 1 / 3, dtype=dtype), torch.arange(6) % 3, weight=torch.zeros(3, 4, dtype=dtype)
    )
    numbers = [point.variability, point.norm_variation, point.angle_deviation, point.self_duality]
    assert not any(number.determined for number in [*numbers, point.weight_norm_variation])
    assert "class means are the same" in str(point)
    middle = neural_collapse(torch.tensor([[-1.0], [0.0], [1.0]], dtype=dtype).repeat(2, 1), torch.arange(3).repeat(2))
    assert "1 class means lie at the centre" in middle.angle_deviation.how


def test_a_small_network_collapses_when_trained_on_and_has_not_at_first() -> None:
    torch.manual_seed(1)
    centres = torch.randn(4, 8)
    y = torch.arange(120) % 4
    x = centres[y] + 0.3 * torch.randn(120, 8)
    body, head = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16)), nn.Linear(16, 4)
    model = nn.Sequential(body, head)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-3)

    def measured() -> tuple[float, float, float]:
        collapse = neural_collapse(body(x), y, head.weight, head.bias)
        return collapse.variability.value, collapse.angle_deviation.value, collapse.self_duality.value

    before = measured()
    for _ in range(600):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    after = measured()
    assert all(late < 0.5 * early for late, early in zip(after, before, strict=True)), (before, after)
    assert after[2] < 0.1, "the classifier's rows are the class means"
    assert all(tensor.grad is not None for tensor in model.parameters())


@pytest.mark.parametrize(
    ("features", "labels", "classifier", "words"),
    [
        (torch.zeros(4, 2, 2), torch.arange(4), {}, r"features has the wrong form; given: shape \(4, 2, 2\)"),
        (torch.zeros(4, 2), torch.zeros(4), {}, "labels do not go with the features"),
        (torch.zeros(4, 2), torch.arange(3), {}, r"labels do not go with the features; given: shape \(3,\)"),
        (torch.zeros(4, 2), torch.zeros(4).long(), {}, "labels hold one class only; given: class 0"),
        (torch.full((4, 2), math.nan), torch.arange(4), {}, "features is not finite; given: 8 of 8"),
        (torch.zeros(4, 2), torch.arange(4), {"weight": torch.zeros(4, 3)}, "weight does not go with the features"),
        (torch.zeros(4, 2), torch.arange(4), {"weight": torch.zeros(3, 2)}, "labels are no rows of the weight"),
        (torch.zeros(4, 2), torch.arange(4), {"bias": torch.zeros(4)}, "bias does not go with the weight"),
    ],
)
def test_refusals(features: Tensor, labels: Tensor, classifier: dict[str, Tensor], words: str) -> None:
    with pytest.raises(DiagnosticsError, match=words):
        neural_collapse(features, labels, **classifier)
