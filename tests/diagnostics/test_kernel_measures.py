"""What is measured on tangent kernels, against closed forms and slow twins."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diagnostics import (
    DiagnosticsError,
    Objective,
    TangentKernel,
    fisher_jacobian,
    input_jacobian,
    kernel_curvature,
    kernel_layers,
    kernel_modes,
    kernel_variation,
    linearisation,
    ntk,
    residuals,
    sgd_coherence,
    telescoped,
)
from tests.cases import CASES
from tests.cases.case import Case
from tests.cases.models import convolutional
from tests.reference import kernel_loops as twin


def given(matrix: Tensor, outputs: Any = "trace", classes: int = 1) -> TangentKernel:
    count = len(matrix) // (classes if outputs == "full" else 1)
    return TangentKernel(matrix.double(), outputs, count, count, classes, "", None, None, 2.2e-16, {}, "by hand")


def random_kernel(size: int, seed: int = 0) -> Tensor:
    rows = torch.randn(size, size + 2, generator=torch.Generator().manual_seed(seed)).double()
    return rows @ rows.T


def network(outputs: int = 3, scale: float = 1.0) -> nn.Sequential:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, outputs)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(scale)
    return model


def problem(outputs: int = 3, count: int = 7, loss: nn.Module | None = None) -> Objective:
    generator = torch.Generator().manual_seed(2)
    x, y = (torch.randn(count, width, generator=generator).double() for width in (3, outputs))
    return Objective(network(outputs), loss or nn.MSELoss(), [(x[:4], y[:4]), (x[4:], y[4:])])


def test_alignment_in_closed_form() -> None:
    signs = torch.tensor([1.0, -1.0] * 10).double()
    assert float(given(torch.eye(20)).alignment(signs)) == pytest.approx(20**-0.5, abs=1e-15)
    assert float(given(torch.outer(signs, signs)).alignment(signs)) == pytest.approx(1.0, abs=1e-15)
    labels = torch.arange(20) % 4
    assert float(given(torch.eye(20)).alignment(labels, centred=True)) == pytest.approx(0.39735970711951, abs=1e-13)
    full = given(torch.eye(80), "full", 4).alignment(labels, centred=True)
    assert float(full) == pytest.approx((4 * 19) ** -0.5, abs=1e-14)
    # Two classes of one output are ±1.
    assert float(given(torch.outer(signs, signs), "full").alignment((signs < 0).long())) == pytest.approx(1.0)


@pytest.mark.parametrize("outputs", ["trace", "full"])
def test_alignment_is_what_loops_say(outputs: Any) -> None:
    width = 2 if outputs == "full" else 1
    k, y = random_kernel(6 * width), torch.randn(6, 2).double()
    target = torch.outer(y.flatten(), y.flatten()) if outputs == "full" else y @ y.T
    kernel = given(k, outputs, 2)
    assert float(kernel.alignment(y)) == pytest.approx(twin.alignment(k, target), abs=1e-13)
    h = twin.centring(6, width)
    expected = twin.alignment(h @ k @ h, h @ target @ h)
    assert float(kernel.alignment(y, centred=True)) == pytest.approx(expected, abs=1e-13)
    apart = torch.kron(1.0 - torch.eye(6), torch.ones(width, width)).double()
    assert float(kernel.alignment(y, unbiased=True)) == pytest.approx(twin.alignment(k * apart, target * apart))


def test_unbiased_alignment_is_the_u_statistic_and_about_zero_without_structure() -> None:
    k, y = random_kernel(6), torch.randn(6, 2).double()
    found = given(k).alignment(y, centred=True, unbiased=True)
    assert float(found) == pytest.approx(twin.unbiased_alignment(k, y @ y.T), abs=1e-12)
    labels, drawn = torch.arange(20) % 4, []
    for seed in range(60):
        kernel = given(random_kernel(20, seed))
        drawn.append([float(kernel.alignment(labels, centred=True, unbiased=flag)) for flag in (False, True)])
    biased, unbiased = torch.tensor(drawn).mean(0).tolist()
    assert biased > 0.2
    assert abs(unbiased) < 0.02
    # Of a full kernel with one output it is the same.
    one = given(k, "full").alignment(y[:, 0], centred=True, unbiased=True)
    assert float(one) == pytest.approx(float(given(k).alignment(y[:, 0], centred=True, unbiased=True)), abs=1e-13)


def test_what_has_no_alignment_says_so() -> None:
    nothing = given(torch.zeros(5, 5)).alignment(torch.arange(5))
    assert not nothing.determined
    assert "nothing of the kernel" in nothing.how
    same = given(torch.eye(5)).alignment(torch.zeros(5).long(), centred=True)
    assert "nothing left of the targets" in same.how
    assert not given(torch.eye(5)).alignment(torch.arange(5), unbiased=True).determined
    full = given(torch.eye(10), "full", 2)
    for targets in (torch.zeros(4), torch.zeros(5, 3), torch.full((5,), 2), torch.full((5, 2), math.nan), 1.0):
        with pytest.raises(DiagnosticsError, match="targets"):
            full.alignment(targets)
    with pytest.raises(DiagnosticsError, match="too few"):
        given(torch.eye(3)).alignment(torch.arange(3), centred=True, unbiased=True)
    objective = problem()
    with pytest.raises(DiagnosticsError, match="one set of examples"):
        ntk(objective, against=objective).alignment(torch.zeros(7, 3))
    with pytest.raises(DiagnosticsError, match="same examples"):
        full.distance(given(torch.eye(10)))


def test_sampled_kernels_are_off_by_no_more_than_they_say() -> None:
    objective = problem(outputs=9)
    exact, labels = ntk(objective, outputs="trace"), torch.arange(7) % 3
    wanted = float(exact.alignment(labels, centred=True))
    for seed in range(10):
        sampled = ntk(objective, outputs="trace", samples=40, seed=seed)
        found = sampled.alignment(labels, centred=True)
        assert found.kind == "standard error"
        assert abs(float(found) - wanted) < 2 * found.error
        assert sampled.distance(exact).error < 0.5


def test_distance_between_kernels() -> None:
    k, other = random_kernel(6), random_kernel(6, 1)
    assert float(given(k).distance(given(3.0 * k))) == pytest.approx(0.0, abs=1e-30)
    assert float(given(k).distance(given(other))) == pytest.approx(1 - twin.alignment(k, other), abs=1e-14)
    tiny = k + 1e-9 * other
    assert 0 < float(given(k).distance(given(tiny))) < 1e-17


def test_a_linear_model_keeps_its_kernel() -> None:
    model, x = nn.Linear(3, 2).double(), torch.randn(6, 3).double()
    objective = Objective(model, nn.MSELoss(), (x, x[:, :2].sin()))
    start, optimizer = ntk(objective), torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), x[:, :2].sin()).backward()
        optimizer.step()
    assert float(start.distance(ntk(objective))) == 0.0
    assert float(linearisation(objective, -0.5 * objective.gradient()).error) < 1e-12


def test_layers_sum_to_the_whole_and_are_the_kernels_of_frozen_networks() -> None:
    objective, labels = problem(), torch.arange(7) % 3
    kernel = ntk(objective, by_layer=True)
    table = kernel_layers(kernel, labels, centred=True)
    assert [row.layer for row in table.rows] == ["0", "2", "4"]
    assert sum(float(row.share) for row in table.rows) == pytest.approx(1.0, abs=1e-12)
    assert float(table.whole) == float(kernel.alignment(labels, centred=True))
    alone = ntk(Objective(objective.model, nn.MSELoss(), objective.batches, params="2.*"))
    assert float(table.rows[1].alignment) == pytest.approx(float(alone.alignment(labels, centred=True)), abs=1e-12)
    assert float(table.rows[1].share) == pytest.approx(float(alone.trace) / float(kernel.trace), abs=1e-12)
    finer = kernel_layers(kernel, labels, by="parameter")
    assert [row.layer for row in finer.rows] == list(kernel.by_layer)
    assert "share of trace" in str(table)
    assert table.to_pandas().shape == (3, 3)
    with pytest.raises(DiagnosticsError, match="by is unknown"):
        kernel_layers(kernel, labels, by="block")  # type: ignore[arg-type]


def test_planted_targets_are_in_the_mode_they_were_planted_in() -> None:
    k = random_kernel(6)
    values, vectors = torch.linalg.eigh(k)
    modes = kernel_modes(given(k), vectors[:, -1])
    assert float(modes.top(1)) == pytest.approx(1.0, abs=1e-12)
    assert torch.allclose(modes.values, values.flip(0))
    y = torch.randn(6, 2).double()
    found = kernel_modes(given(k), y)
    expected = [float((vectors[:, -1 - i] @ y).square().sum() / y.square().sum()) for i in range(6)]
    assert found.energies.tolist() == pytest.approx(expected, abs=1e-12)
    assert float(found.top(3)) == pytest.approx(sum(expected[:3]))
    assert float(found.below(1.0)) == pytest.approx(sum(expected[1:]))
    assert float(kernel_modes(given(torch.eye(4)), torch.ones(4)).top(4)) == pytest.approx(1.0)
    assert not kernel_modes(given(k), torch.zeros(6)).top(1).determined
    for k_ in (0, 7, True):
        with pytest.raises(DiagnosticsError, match="k is out of range"):
            found.top(k_)
    with pytest.raises(DiagnosticsError, match="share"):
        found.below(0.0)


def test_a_fixed_kernel_learns_mode_by_mode() -> None:
    """f_t = y + (I − ηΘ/N)ᵗ (f₀ − y) of a linear model, whose residual decays along each eigenvector by itself."""
    torch.manual_seed(0)
    model, x = nn.Linear(5, 1, bias=False).double(), torch.randn(4, 5).double()
    y = torch.randn(4, 1).double()
    objective = Objective(model, lambda f, t: 0.5 * (f - t).square().mean(), (x, y))
    kernel, before = ntk(objective), residuals(objective)
    torch.testing.assert_close(before, (model(x) - y).detach())
    start, lr = model(x).detach(), 0.3
    for _ in range(50):
        gradient = objective.gradient()
        with torch.no_grad():
            model.weight.sub_(lr * gradient.view_as(model.weight))
    torch.testing.assert_close(model(x).detach(), twin.descent(kernel.matrix, start, y, lr, 50), rtol=0, atol=1e-9)
    modes, after = kernel_modes(kernel, before), kernel_modes(kernel, residuals(objective))
    factors = (1 - lr * modes.values / 4) ** 50
    left = factors.square() * modes.energies * modes.norm**2
    torch.testing.assert_close(after.energies * after.norm**2, left, rtol=1e-7, atol=1e-12)


def test_residuals_of_cross_entropy_and_of_ragged_batches() -> None:
    objective = problem(loss=nn.MSELoss())
    whole = torch.cat([(2.0 / 3.0 * (objective.model(x) - y)).detach() for x, y in objective.batches])
    torch.testing.assert_close(residuals(objective), whole)
    labels = torch.arange(7) % 3
    x = torch.cat([batch[0] for batch in objective.batches])
    logits = objective.model(x).detach()
    classes = Objective(objective.model, nn.CrossEntropyLoss(), [(x[:5], labels[:5]), (x[5:], labels[5:])])
    torch.testing.assert_close(residuals(classes), logits.softmax(1) - nn.functional.one_hot(labels, 3))


def test_the_first_order_prediction_is_the_jacobian_and_its_error_shrinks_with_the_step() -> None:
    objective = problem()
    space = objective.space
    theta = space.flatten(space.values())

    def outputs(at: Tensor) -> Tensor:
        values = dict(zip(space.names, space.unflatten(at), strict=True))
        x = torch.cat([batch[0] for batch in objective.batches])
        return torch.func.functional_call(objective.model, values, (x,))

    update = -0.2 * objective.gradient()
    found = linearisation(objective, update)
    torch.testing.assert_close(
        found.predicted.flatten(), twin.differences(outputs, theta) @ update, rtol=1e-6, atol=1e-9
    )
    torch.testing.assert_close(found.actual, outputs(theta + update) - outputs(theta))
    expected = float((found.actual - found.predicted).norm() / found.actual.norm())
    assert float(found.error) == expected
    smaller = float(linearisation(objective, 0.1 * update).error)
    assert smaller == pytest.approx(0.1 * expected, rel=0.2)
    away = linearisation(objective, update, at=theta - update)
    torch.testing.assert_close(away.actual, outputs(theta) - outputs(theta - update))
    before = twin.differences(outputs, theta - update) @ update
    torch.testing.assert_close(away.predicted.flatten(), before, rtol=1e-6, atol=1e-9)
    still = linearisation(objective, torch.zeros_like(update))
    assert not still.error.determined
    assert "no more than rounding" in str(still)
    with pytest.raises(DiagnosticsError, match="does not fit"):
        linearisation(objective, update[1:])


def test_first_order_changes_telescope() -> None:
    """Small steps add up to what happened; the tangents at the start alone do not."""
    objective = problem()
    space, steps = objective.space, []
    start = space.flatten(space.values())
    for _ in range(40):
        update = -0.1 * objective.gradient()
        steps.append(linearisation(objective, update))
        with torch.no_grad():
            for tensor, part in zip(space.tensors, space.unflatten(update), strict=True):
                tensor.add_(part)
    end = space.flatten(space.values())
    together = float(telescoped(steps))
    with torch.no_grad():
        for tensor, part in zip(space.tensors, space.unflatten(start), strict=True):
            tensor.copy_(part)
    at_once = linearisation(objective, end - start)
    torch.testing.assert_close(at_once.actual, torch.stack([step.actual for step in steps]).sum(0))
    assert together < 0.3 * float(at_once.error)
    with pytest.raises(DiagnosticsError, match="one set of outputs"):
        telescoped([])


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.CrossEntropyLoss(), nn.BCEWithLogitsLoss(), nn.SmoothL1Loss()])
def test_the_kernel_has_the_eigenvalues_of_the_gauss_newton_matrix(loss: nn.Module) -> None:
    objective = problem(loss=loss)
    if isinstance(loss, nn.CrossEntropyLoss | nn.BCEWithLogitsLoss):
        soft = [(x, y.softmax(1)) for x, y in objective.batches]
        objective = Objective(objective.model, loss, soft)
    found = kernel_curvature(objective, check=True)
    assert found.disagreement is not None
    assert float(found.disagreement) < 1e-3
    assert "by Lanczos" in str(found)
    assert len(found.eigenvalues) == 21


@pytest.mark.parametrize("case", [case for case in CASES if case.outputs is not None], ids=str)
def test_both_ways_to_the_gauss_newton_matrix_meet_on_every_model(case: Case) -> None:
    objective = case.objective(ragged=True)
    found = kernel_curvature(objective, check=True)
    assert found.disagreement is not None
    assert float(found.disagreement) < 1e-5
    # And so do both ways to a change of the outputs, for a step that is short enough.
    theta, direction = objective.space.flatten(objective.space.values()), -objective.gradient()
    step = linearisation(objective, 1e-5 * theta.norm() / direction.norm() * direction)
    assert float(step.error) < 1e-3


def test_a_loss_that_is_not_convex_is_refused() -> None:
    objective = problem(loss=nn.MSELoss())
    bent = Objective(objective.model, lambda f, _: f.cos().mean(), objective.batches)
    with pytest.raises(DiagnosticsError, match="not convex"):
        kernel_curvature(bent)
    with pytest.raises(DiagnosticsError, match="not the full one"):
        kernel_curvature(objective, kernel=ntk(objective, outputs="trace"))


def test_variation_over_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    kernels = [given(torch.full((3, 3), 2.0) * (1 + 0.5 * torch.randn(1, generator=generator))) for _ in range(400)]
    found = kernel_variation(kernels)
    assert abs(float(found) - 0.25) < 3 * found.error
    assert found.error < 0.05
    assert "heavy tails" not in found.how
    # e^{s²} − 1 = 9.4 of log-normal kernels, which few of them know nothing of.
    heavy = [given(torch.full((3, 3), float(torch.exp(1.53 * torch.randn(1, generator=generator))))) for _ in range(48)]
    assert "heavy tails" in kernel_variation(heavy).how
    with pytest.raises(DiagnosticsError, match="too few"):
        kernel_variation(kernels[:3])
    with pytest.raises(DiagnosticsError, match="different examples"):
        kernel_variation([*kernels, given(torch.eye(4))])
    assert not kernel_variation([given(torch.zeros(2, 2))] * 4).determined


def test_input_jacobians_against_differences() -> None:
    objective = problem()
    norms = torch.cat(
        [
            torch.stack([twin.differences(lambda at: objective.model(at).detach(), row).norm() for row in x])
            for x, _ in objective.batches
        ]
    )
    torch.testing.assert_close(input_jacobian(objective).norms, norms, rtol=1e-6, atol=1e-9)
    images = Objective(convolutional(), nn.CrossEntropyLoss(), (torch.randn(5, 1, 5, 5), torch.zeros(5).long()))
    assert bool((input_jacobian(images).norms > 0).all())
    table = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2))
    words = Objective(table, nn.CrossEntropyLoss(), (torch.zeros(4, 2).long(), torch.zeros(4).long()))
    with pytest.raises(DiagnosticsError, match="cannot be differentiated"):
        input_jacobian(words)


def test_training_with_every_measure_in_every_step_is_bit_identical() -> None:
    ends = []
    for probed in (True, False):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 3))
        x, y = torch.randn(12, 3), torch.randint(3, (12,))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            if probed:
                objective = Objective(model, nn.CrossEntropyLoss(), (x, y))
                kernel = ntk(objective, by_layer=True)
                kernel_layers(kernel, y)
                kernel_modes(kernel, residuals(objective))
                linearisation(objective, -objective.gradient())
                kernel_curvature(objective, kernel=kernel)
                input_jacobian(objective)
                fisher_jacobian(objective, kernel=ntk(objective))
                sgd_coherence(objective, 4)
            optimizer.step()
        state = [value for one in optimizer.state.values() for value in one.values()]
        ends.append([*model.state_dict().values(), *(p.grad for p in model.parameters()), *state, torch.rand(3)])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))
