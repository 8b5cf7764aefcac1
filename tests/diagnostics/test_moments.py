"""Moments against loops over coordinates, and RMS_t where it is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from diagnostics import DiagnosticsError, moment_statistics
from diagnostics.learning_rate.moments import QUANTILES
from tests.reference import update_loops
from tests.reference.rate_loops import coordinate_rates, cosine


def _stepped(
    kind: type[Optimizer], size: int = 11, steps: int = 4, **settings: object
) -> tuple[nn.Parameter, Optimizer]:
    w = nn.Parameter(torch.randn(size, dtype=torch.float64))
    optimizer = kind([w], **{"lr": 0.01, **settings})
    for _ in range(steps):
        w.grad = torch.randn_like(w)
        w.grad[0] = 0.0
        optimizer.step()
    return w, optimizer


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Adam, {}),
        (Adam, {"weight_decay": 0.5}),
        (AdamW, {"betas": (0.8, 0.9), "weight_decay": 0.5}),
        (AdamW, {"amsgrad": True, "betas": (0.9, 0.5)}),
        (Adam, {"eps": 2.0}),
    ],
)
def test_every_number_against_a_loop(kind: type[Optimizer], settings: dict[str, object]) -> None:
    w, optimizer = _stepped(kind, **settings)
    g, update = torch.randn_like(w.detach()), torch.randn_like(w.detach())
    found = moment_statistics(optimizer, w, g, update=update)
    expected = update_loops.gradient_over_moment(optimizer, w, g)
    assert found.gradient_over_moment.value == pytest.approx(expected, rel=1e-12)
    decay = 0.5 if kind is Adam and "weight_decay" in settings else 0.0
    seen, m = g + decay * w.detach(), optimizer.state[w]["exp_avg"]
    assert found.sign_agreement.value == update_loops.same_signs(seen, m)
    assert found.moment_alignment.value == pytest.approx(cosine(seen, m), rel=1e-9)
    assert found.update_alignment.value == pytest.approx(-cosine(g, update), rel=1e-9)
    rates = sorted(coordinate_rates(optimizer, w))
    assert found.rates == pytest.approx([rates[round(q * 10)] for q in QUANTILES], rel=1e-9)


def test_a_spike_shows_before_the_second_moment_has_learnt_of_it() -> None:
    """Gaussian gradients at β2 = .99: .995 while they stay as they are, 5.88 when they grow tenfold, 10 at most."""
    w = nn.Parameter(torch.zeros(100_000))
    optimizer = Adam([w], lr=0.0, betas=(0.9, 0.99))
    for _ in range(500):
        w.grad = torch.randn_like(w)
        optimizer.step()
    g = torch.randn_like(w.detach())
    g /= g.square().mean().sqrt()
    found = moment_statistics(optimizer, w, g)
    assert found.gradient_over_moment.value == pytest.approx(0.995, abs=2e-3)
    assert found.sign_agreement.value == pytest.approx(0.5, abs=0.01), "unrelated gradients"
    assert moment_statistics(optimizer, w, 10 * g).gradient_over_moment.value == pytest.approx(5.88, abs=0.03)
    most = 10 * math.sqrt(1 - 0.99**501)
    assert moment_statistics(optimizer, w, 1e6 * g).gradient_over_moment.value == pytest.approx(most, rel=1e-4)
    along = moment_statistics(optimizer, w, optimizer.state[w]["exp_avg"])
    assert along.sign_agreement.value == 1.0
    assert along.moment_alignment.value == pytest.approx(1.0)


def test_rmsprop_takes_the_gradient_in_as_torch_does() -> None:
    for settings in ({"alpha": 0.9}, {"alpha": 0.9, "centered": True}):
        w, optimizer = _stepped(RMSprop, **settings)
        g = torch.randn_like(w.detach())
        found = moment_statistics(optimizer, w, g).gradient_over_moment.value
        w.grad = g.clone()
        optimizer.step()
        state = optimizer.state[w]
        v = state["square_avg"] - (state["grad_avg"].square() if "grad_avg" in state else 0.0)
        assert found == pytest.approx(float((g.square() / v).mean().sqrt()), rel=1e-9)


def test_a_second_moment_of_another_make_is_taken_as_it_is() -> None:
    w, optimizer = _stepped(Adagrad)
    g = torch.ones_like(w.detach())
    total = optimizer.state[w]["sum"]
    assert float(total[0]) == 0.0, "where there never was a gradient ε decides"
    found = moment_statistics(optimizer, w, g).gradient_over_moment
    assert found.value == pytest.approx(math.sqrt(float((1 / total.clamp_min(1e-20)).mean())), rel=1e-9)
    assert found.how.endswith("v̂ as it is")


def test_what_an_optimizer_does_not_keep_is_none() -> None:
    w, optimizer = _stepped(SGD, momentum=0.9)
    found = moment_statistics(optimizer, w, torch.ones_like(w.detach()))
    assert (found.gradient_over_moment, found.epsilon_share, found.rates, found.update_alignment) == (None,) * 4
    moment = optimizer.state[w]["momentum_buffer"]
    assert found.sign_agreement.value == update_loops.same_signs(torch.ones_like(moment), moment)
    w, plain = _stepped(SGD)
    assert moment_statistics(plain, w, torch.ones_like(w.detach())).sign_agreement is None
    w, fresh = _stepped(Adam, steps=0)
    assert moment_statistics(fresh, w, torch.ones_like(w.detach())).gradient_over_moment is None
    nothing = moment_statistics(*reversed(_stepped(Adam)), torch.zeros(11, dtype=torch.float64))
    assert not nothing.sign_agreement.determined


def test_a_parameter_of_another_optimizer_is_refused() -> None:
    w, _ = _stepped(Adam)
    _, other = _stepped(Adam)
    with pytest.raises(DiagnosticsError, match="the optimizer does not hold the parameter; given: Adam"):
        moment_statistics(other, w, torch.ones_like(w.detach()))


def test_a_gradient_or_update_of_another_shape_or_not_finite_is_refused() -> None:
    """NaN would have no sign in common with anything, and a smaller shape would be stretched."""
    w, optimizer = _stepped(SGD, momentum=0.9)
    gradient = torch.ones_like(w.detach())
    for wrong in (gradient[:1], gradient * torch.nan):
        with pytest.raises(DiagnosticsError, match="the gradient or the update is not of this parameter"):
            moment_statistics(optimizer, w, wrong)
        with pytest.raises(DiagnosticsError, match="the gradient or the update is not of this parameter"):
            moment_statistics(optimizer, w, gradient, update=wrong)
    optimizer.state[w]["momentum_buffer"].fill_(torch.nan)
    assert not moment_statistics(optimizer, w, gradient).sign_agreement.determined
