"""The Gram matrix in bounded memory: the same numbers from batches that are held together, in groups, and in pieces."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diagnostics import DiagnosticsError, Objective, gradient_gram
from diagnostics.noise import gram as held
from diagnostics.recorded import gram as made
from tests.cases.models import Recurrent, TiedTagger, convolutional
from tests.diagnostics.test_per_example import double
from tests.reference.per_example_loops import gradients

SIZES = (5, 4, 1, 7)
COUNT = sum(SIZES)


def conv() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    return convolutional(), nn.CrossEntropyLoss(), torch.randn(COUNT, 1, 5, 5), torch.randint(3, (COUNT,))


def tagger() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    labels = torch.randint(4, (COUNT, 5))
    labels[torch.rand(COUNT, 5) < 0.3] = -100
    labels[2] = -100
    return TiedTagger(), nn.CrossEntropyLoss(), torch.randint(4, (COUNT, 5)), labels


def lstm() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    return Recurrent(), nn.MSELoss(reduction="sum"), torch.randn(COUNT, 4, 2), torch.randn(COUNT, 2)


PROBLEMS: dict[str, Callable[[], tuple[nn.Module, nn.Module, Tensor, Tensor]]] = {
    "convolutions": conv,
    "tied, ignored labels": tagger,
    "lstm, summed": lstm,
}


def problem(name: str, sizes: tuple[int, ...] = SIZES) -> Objective:
    torch.manual_seed(0)
    model, loss, x, y = PROBLEMS[name]()
    x, y = (leaf.double() if leaf.is_floating_point() else leaf for leaf in (x, y))
    return Objective(double(model), loss, list(zip(x.split(sizes), y.split(sizes), strict=True)))


def twin(objective: Objective) -> Tensor:
    rows = []
    for (x, y), weight in zip(objective.batches, objective.weights, strict=True):
        summed = objective.form.criterion.reduction == "sum"
        terms = [1.0 if summed else objective.count_terms((x[i : i + 1], y[i : i + 1])) for i in range(len(x))]

        def contribution(module: nn.Module, i: int, batch: Any = (x, y, weight, terms, summed)) -> Tensor:
            x, y, weight, terms, summed = batch
            if not terms[i]:
                return torch.zeros(())
            share = COUNT * weight * (1.0 if summed else terms[i] / sum(terms))
            return share * objective.form.criterion(module(x[i : i + 1]), y[i : i + 1])

        rows.append(gradients(objective.model, contribution, len(x)))
    whole = torch.cat(rows)
    return whole @ whole.T


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> Callable[[Objective, float], int]:
    """Allows a share of what is held for an objective; the share in bytes."""

    def bounded(objective: Objective, share: float) -> int:
        totals: list[int] = []
        monkeypatch.setattr(held, "_bytes", lambda known: totals.append(measure(known)) or totals[-1])
        measured = gradient_gram(objective)
        alone = [p.nbytes for name, p in objective.space.items() if measured.routes[name] != "recorded"]
        memory = int(share * (sum(totals) + COUNT * sum(alone)))
        monkeypatch.setattr(held, "_bytes", measure)
        monkeypatch.setattr(held, "HELD_BYTES", memory)
        monkeypatch.setattr(made, "MADE_BYTES", memory)
        return memory

    measure = held._bytes
    return bounded


@pytest.mark.parametrize(("share", "ways"), [(0.9, "groups"), (0.2, "cut")])
@pytest.mark.parametrize("name", PROBLEMS)
def test_in_groups_and_in_pieces_it_is_the_same(
    name: str, share: float, ways: str, bound: Callable[[Objective, float], int]
) -> None:
    objective = problem(name)
    expected, whole = twin(objective), gradient_gram(objective)
    torch.testing.assert_close(whole.matrix, expected, rtol=1e-9, atol=1e-9 * float(expected.max()))
    assert whole.how.endswith("; records of all batches held at once")
    bound(problem(name), share)
    bounded = gradient_gram(problem(name))
    torch.testing.assert_close(bounded.matrix, expected, rtol=1e-9, atol=1e-9 * float(expected.max()))
    assert "groups of batches for memory" in bounded.how
    assert ("; batches cut to at most " in bounded.how) is (ways == "cut")


def test_one_batch_that_is_too_large_is_cut(bound: Callable[[Objective, float], int]) -> None:
    objective = problem("convolutions", (COUNT,))
    whole = gradient_gram(objective)
    bound(objective, 0.99)
    bounded = gradient_gram(objective)
    torch.testing.assert_close(bounded.matrix, whole.matrix, rtol=1e-9, atol=1e-12)
    assert "; batches cut to at most 2 examples" in bounded.how
    assert set(bounded.routes.values()) == {"recorded"}, "a piece of few examples goes by the plan of the whole"


class Live(TorchDispatchMode):
    """The most bytes that tensors made inside have ever held at once; views count once, and until the last is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in self.known:
                storage = leaf.untyped_storage()
                self.known.add(storage._cdata)
                weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
        return result

    def gone(self, which: int, nbytes: int) -> None:
        self.known.discard(which)
        self.now -= nbytes


class Mixed(nn.Module):
    """Gradients that are built, and a layer that is not known."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.mix = nn.Linear(4, 48), nn.Linear(48, 48), nn.Parameter(torch.randn(48, 16))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("ntd,dk->ntk", torch.tanh(self.second(torch.tanh(self.first(x)))), self.mix)


def peak(batches: int) -> tuple[int, Tensor]:
    torch.manual_seed(0)
    model, x, y = double(Mixed()), torch.randn(4 * batches, 60, 4).double(), torch.randn(4 * batches, 60, 16).double()
    objective = Objective(model, nn.MSELoss(), list(zip(x.split(4), y.split(4), strict=True)))
    with Live() as live:
        gram = gradient_gram(objective)
    assert (gram.routes["second.weight"], gram.routes["mix"]) == ("recorded", "vmap, an operation that is not known")
    assert live.now < live.peak / 2, "the count of what is let go of works"
    return live.peak, gram.matrix


def test_memory_does_not_grow_with_the_number_of_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    records: list[int] = []
    measure = held._bytes
    monkeypatch.setattr(held, "_bytes", lambda known: records.append(measure(known)) or records[-1])
    (few, _), (many, expected) = peak(6), peak(12)
    assert many > 1.6 * few
    # By what a batch needs, and not by a peak: a batch that was cut would have too few examples for vmap.
    monkeypatch.setattr(held, "HELD_BYTES", 5 * max(records))
    monkeypatch.setattr(made, "MADE_BYTES", max(records))
    (few, _), (many, bounded) = peak(6), peak(12)
    assert many < 1.1 * few
    torch.testing.assert_close(bounded, expected, rtol=1e-9, atol=1e-9 * float(expected.max()))


def test_too_many_examples_are_refused_before_anything_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "MATRIX_BYTES", 8 * 11**2)
    monkeypatch.setattr(held, "sheets", None)
    match = r"too many examples.*given: 17, .*expected: at most 11; try: limit=3, for 3 of 4 batches"
    with pytest.raises(DiagnosticsError, match=match):
        gradient_gram(problem("lstm, summed"))
    with pytest.raises(DiagnosticsError, match="fewer examples"):
        gradient_gram(problem("lstm, summed", (COUNT,)))
