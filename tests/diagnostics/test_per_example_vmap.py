"""What no record knows is differentiated by vmap where that works and example by example where not: always the loop's.

Every model here is compared with one backward pass for each example, to 1e-9 in float64; the route says which way was
taken, and a way that gives another gradient than an example alone is not used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from diagnostics import (
    DiagnosticsError,
    Objective,
    gradient_signal_to_noise,
    per_example_gradient_dots,
    per_example_gradient_norms,
)
from diagnostics.recorded import alone, vectorised
from tests.cases.language import MASKED
from tests.cases.models import Recurrent
from tests.diagnostics.test_per_example import agrees, double
from tests.reference.per_example_loops import gradients

LOSS = nn.MSELoss()
UNKNOWN = "vmap, an operation that is not known"


class Cell(nn.Module):
    """A gated cell by hand, each matrix one operation that no table holds."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.around = nn.Parameter(torch.randn(3, 4, 2)), nn.Parameter(torch.randn(3, 4, 4) / 2)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 4)
        for step in x.unbind(1):
            z, r, c = torch.einsum("gij,nj->gni", self.inward, step) + torch.einsum("gij,nj->gni", self.around, h)
            h = h + torch.sigmoid(z) * (torch.tanh(torch.sigmoid(r) * c) - h)
        return self.head(h)


class Spline(nn.Module):
    """Piecewise linear functions of each input, their knots the parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.knots = nn.Parameter(torch.randn(2, 9))

    def forward(self, x: Tensor) -> Tensor:
        place = (4 + 2 * torch.tanh(x[..., :2].mean(1))).clamp(0, 7.999)
        low = place.floor().long()
        channel = torch.arange(2).expand_as(low)
        share = place - low
        return (1 - share) * self.knots[channel, low] + share * self.knots[channel, low + 1]


class Complex(nn.Module):
    """Gates in the frequency domain."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.head = nn.Parameter(torch.randn(4, 2, 2)), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        seen = torch.einsum("ntd,td->ntd", torch.fft.fft(x, dim=1), torch.view_as_complex(self.gate))
        return self.head(torch.fft.ifft(seen, dim=1).abs().mean(1))


class Einsum(nn.Module):
    """A parameter of no dimensions among them, and an offset that is added to what einsum gives."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.power = nn.Parameter(torch.randn(2, 2)), nn.Parameter(torch.tensor(1.3))
        self.offset = nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        mixed = torch.einsum("ntd,dk->ntk", x, self.weight) + self.offset
        return torch.where(
            mixed > 0, mixed, torch.expm1(torch.einsum("ntk,->ntk", mixed.clamp(max=0), self.power))
        ).mean(1)


class Paired(nn.Module):
    """A product of three, which vmap takes in turns and says so in a warning."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs = nn.Bilinear(2, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pairs(x[:, 0], x[:, 1])


MODELS: dict[str, Callable[[], nn.Module]] = {
    "einsum": Einsum,
    "gated cell": Cell,
    "spline": Spline,
    "complex": Complex,
    "lstm": Recurrent,
    "gru": lambda: Recurrent(nn.GRU),
    "bilinear": Paired,
}


def data(count: int = 9) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 4, 2, dtype=torch.float64), torch.randn(count, 2, dtype=torch.float64)


def of(model: nn.Module, x: Tensor, y: Tensor, loss: Callable[..., Tensor] = LOSS) -> Callable[..., Tensor]:
    return lambda m, i: loss(m(x[i : i + 1]), y[i : i + 1])


def routes(objective: Objective) -> set[str]:
    return set(per_example_gradient_norms(objective).routes.values())


@pytest.mark.parametrize("at_once", [None, 4], ids=["whole", "in chunks"])
@pytest.mark.parametrize("name", MODELS)
def test_models_that_are_not_known(name: str, at_once: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, (x, y) = double(MODELS[name]()), data()
    if at_once:
        monkeypatch.setattr(alone, "at_once", lambda _: at_once)
    objective = Objective(model, LOSS, (x, y))
    agrees(objective, of(model, x, y), recorded=False)
    assert routes(objective) - {"recorded"} == {UNKNOWN}


def test_what_is_asked_of_single_entries() -> None:
    """Norms in a metric and second moments are of the same rows."""
    torch.manual_seed(11)
    model, (x, y) = double(Cell()), data()
    objective = Objective(model, LOSS, (x, y))
    twin = gradients(model, of(model, x, y), len(x))
    metric = torch.rand(objective.num_parameters, dtype=torch.float64)
    measured = per_example_gradient_norms(objective, metric=metric)
    torch.testing.assert_close(measured.norms, (twin.square() @ metric).sqrt(), rtol=1e-9, atol=0)
    assert UNKNOWN in measured.routes.values()
    signal = gradient_signal_to_noise(objective).ratio
    expected = twin.mean(0).square() / twin.var(0) - 1 / len(x)
    torch.testing.assert_close(signal, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_ragged_batches_of_which_one_is_small(reduction: str) -> None:
    torch.manual_seed(1)
    model, (x, y), loss = double(Einsum()), data(), nn.MSELoss(reduction=reduction)
    objective = Objective(model, loss, [(x[:5], y[:5]), (x[5:7], y[5:7]), (x[7:], y[7:])])
    share = 9 / 3 if reduction == "sum" else 1.0
    agrees(objective, lambda m, i: share * loss(m(x[i : i + 1]), y[i : i + 1]), recorded=False)
    measured = per_example_gradient_norms(objective)
    assert measured.routes["weight"] == "vmap and example by example: an operation that is not known"
    assert "2 of 3 parameters by vmap; 2 of 3 parameters example by example" in measured.how


def test_frozen_and_selected_parameters() -> None:
    torch.manual_seed(2)
    model, (x, y) = double(Cell()), data()
    model.inward.requires_grad_(False)
    agrees(Objective(model, LOSS, (x, y)), of(model, x, y), recorded=False)
    selected = Objective(model, LOSS, (x, y), params="around")
    agrees(selected, of(model, x, y), recorded=False)
    assert routes(selected) == {UNKNOWN}


class Tokens(nn.Module):
    """Embeddings that are mixed by einsum to logits; with labels as Hugging Face models are called."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(6, 3), nn.Parameter(torch.randn(3, 6))

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:
        logits = torch.einsum("ntd,dk->nkt", torch.tanh(self.table(input_ids)), self.mix)
        return logits if labels is None else _Output(F.cross_entropy(logits, labels, ignore_index=MASKED), logits)


class _Output:
    def __init__(self, loss: Tensor, logits: Tensor) -> None:
        self.loss, self.logits = loss, logits


def sentences() -> tuple[Tensor, Tensor, list[int]]:
    torch.manual_seed(3)
    tokens, labels = torch.randint(6, (8, 5)), torch.randint(6, (8, 5))
    labels[torch.rand(8, 5) < 0.3] = MASKED
    labels[0], labels[5] = MASKED, MASKED
    return tokens, labels, [int((row != MASKED).sum()) for row in labels]


@pytest.mark.parametrize("form", ["pair", "pair, sum", "mapping", "function"])
def test_ignored_labels_in_every_form(form: str) -> None:
    """Examples without a label have no loss of their own (0/0), and a gradient of zero."""
    tokens, labels, terms = sentences()
    model = double(Tokens())
    loss = nn.CrossEntropyLoss(ignore_index=MASKED, reduction="sum" if "sum" in form else "mean")
    batch = {"input_ids": tokens, "labels": labels}
    objective = {
        "mapping": lambda: Objective.huggingface(model, [batch]),
        "function": lambda: Objective.from_loss(
            model,
            lambda m, b: loss(m(b["input_ids"]), b["labels"]),
            [batch],
            terms=lambda b: float((b["labels"] != MASKED).sum()),
        ),
    }.get(form, lambda: Objective(model, loss, (tokens, labels)))()

    def contribution(module: nn.Module, place: int) -> Tensor:
        if not terms[place]:
            return torch.zeros(())
        share = 8.0 if "sum" in form else 8 * terms[place] / sum(terms)
        return share * loss(module(tokens[place : place + 1]), labels[place : place + 1])

    twin = agrees(objective, contribution, recorded=False)
    assert float(twin[0].norm()) == float(twin[5].norm()) == 0.0
    assert routes(objective) == {"recorded", UNKNOWN}


class Halting(nn.Module):
    """As many steps as the example says: control flow that depends on data."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        rows = []
        for row in x.mean(1):
            h = row
            for _ in range(1 + int(row.sum() > 0)):
                h = torch.tanh(torch.einsum("d,dk->k", h, self.weight))
            rows.append(h)
        return torch.stack(rows)


class Cube(torch.autograd.Function):
    """A derivative by hand, and no rule for vmap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return (x @ w) ** 3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        inner = 3 * (x @ w) ** 2 * g
        return inner @ w.T, x.T @ inner


class ByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return Cube.apply(x.mean(1), self.weight)


class Checkpointed(Einsum):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


class Hooked(Einsum):
    """A hook that reads what passes, as only plain tensors can be read."""

    def forward(self, x: Tensor) -> Tensor:
        result = super().forward(x)
        if result.requires_grad:
            result.register_hook(lambda gradient: gradient * math.copysign(1.0, float(gradient.abs().sum())))
        return result


class Counting(Einsum):
    """Writes into a buffer in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += x.detach().mean((0, 1))
        return super().forward(x)


class Sparse(nn.Module):
    """Gradients of another layout, through an operation that is not known."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(6, 2, sparse=True, mode="sum")

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.table((x[..., 0].abs() * 2).long().clamp(max=5)))


@pytest.mark.parametrize("kind", [Halting, ByHand, Checkpointed, Hooked, Counting, Sparse])
def test_what_vmap_cannot_do_is_left_to_the_loop(kind: type[nn.Module]) -> None:
    torch.manual_seed(4)
    model, (x, y) = double(kind()), data()
    objective = Objective(model, LOSS, (x, y))
    agrees(objective, of(model, x, y), recorded=False)
    measured = per_example_gradient_norms(objective)
    slow = {route for route in measured.routes.values() if route != "recorded"}
    assert all(route.startswith("example by example: ") and "no vmap: " in route for route in slow)
    assert "parameters example by example" in measured.how
    assert "vmap" not in measured.how


def test_a_wrong_vectorised_gradient_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    model, (x, y) = double(Einsum()), data()
    right = vectorised.together

    def wrong(*given: Any) -> dict[str, Tensor]:
        return {name: rows.roll(1, 0) for name, rows in right(*given).items()}

    monkeypatch.setattr(alone, "together", wrong)
    objective = Objective(model, LOSS, (x, y))
    agrees(objective, of(model, x, y), recorded=False)
    assert routes(objective) == {
        "recorded",
        "example by example: an operation that is not known (no vmap: another gradient than that of an example alone)",
    }


def test_a_pass_that_fails_halfway_is_finished_by_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(6)
    model, (x, y) = double(Einsum()), data()
    right = vectorised.together

    def failing(objective: Objective, index: int, places: list[int], copies: bool) -> dict[str, Tensor]:
        if places[0]:
            raise RuntimeError("out of memory")
        return right(objective, index, places, copies)

    monkeypatch.setattr(alone, "together", failing)
    monkeypatch.setattr(alone, "at_once", lambda _: 4)
    objective = Objective(model, LOSS, (x, y))
    agrees(objective, of(model, x, y), recorded=False)
    route = per_example_gradient_norms(objective).routes["weight"]
    assert route == (
        "vmap and example by example: an operation that is not known (no vmap: RuntimeError: out of memory)"
    )


def test_gradients_too_large_for_several_at_once_are_taken_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(7)
    model, (x, y) = double(Einsum()), data()
    bytes_of_two = 8 * (4 + 1)
    monkeypatch.setattr(vectorised, "VMAP_BYTES", 2 * bytes_of_two - 1)
    objective = Objective(model, LOSS, (x, y))
    agrees(objective, of(model, x, y), recorded=False)
    assert routes(objective) == {"recorded", "example by example: an operation that is not known"}
    monkeypatch.setattr(vectorised, "VMAP_BYTES", 2 * bytes_of_two)
    assert routes(objective) == {"recorded", UNKNOWN}


class Dropped(Einsum):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5, self.training)


def test_dropout_is_off_in_eval_mode_and_refused_in_train_mode() -> None:
    """As without vmap: examples draw numbers of their own, and do not make up the gradient of the batch."""
    torch.manual_seed(8)
    model, (x, y) = double(Dropped()), data()
    agrees(Objective(model, LOSS, (x, y)), of(model, x, y), recorded=False)
    with pytest.raises(DiagnosticsError, match="dropout"):
        per_example_gradient_norms(Objective(model, LOSS, (x, y), mode="train"))


class Keeps(Einsum):
    """Holds on to what it computed last, for whoever looks at it later."""

    def forward(self, x: Tensor) -> Tensor:
        self.last = super().forward(x)
        return self.last


def test_what_a_model_keeps_can_be_read_afterwards() -> None:
    torch.manual_seed(9)
    model, (x, y) = double(Keeps()), data()
    objective = Objective(model, LOSS, (x, y))
    assert routes(objective) == {"recorded", UNKNOWN}
    kept = model.last
    assert not kept.requires_grad
    assert torch.equal(kept, model(x[:1]))


def test_in_float32() -> None:
    torch.manual_seed(10)
    model, (x, y) = Recurrent(), data(40)
    x, y = x.float(), y.float()
    measured = per_example_gradient_norms(Objective(model, LOSS, (x, y)))
    vector = torch.ones(sum(p.numel() for p in model.parameters()))
    dots = per_example_gradient_dots(Objective(model, LOSS, (x, y)), vector)
    exact = Objective(double(model), LOSS, (x.double(), y.double()))
    torch.testing.assert_close(measured.norms, per_example_gradient_norms(exact).norms, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(dots, per_example_gradient_dots(exact, vector.double()), rtol=1e-4, atol=1e-6)
    assert UNKNOWN in measured.routes.values()
