"""The tangent kernel in bounded memory, and by every way to its products: the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diagnostics import DiagnosticsError, Objective, TangentKernel, ntk
from diagnostics.recorded import stacked_products
from diagnostics.tangent_kernel import filled, records
from diagnostics.tangent_kernel import ntk as entry
from tests.cases.models import Recurrent, TiedTagger, convolutional
from tests.diagnostics.test_gradient_gram import Live

SIZES = (5, 4, 1)
COUNT = sum(SIZES)


class Tokens(nn.Module):
    """A layer over tokens, once each way round, and a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 6), nn.Parameter(torch.randn(6, 5))
        self.mixed = nn.Conv1d(5, 5, 3, padding=1, groups=5)
        self.undone = nn.ConvTranspose1d(5, 4, 2, stride=2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x)) @ self.second
        return self.head(torch.tanh(self.undone(self.mixed(x.mT))).mean(2))


class Tagger(nn.Module):
    """Words that occur in several sentences, some of them twice in one."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embedding(tokens)).square().mean(1))


def _images() -> tuple[nn.Module, Tensor]:
    return convolutional(), torch.randn(COUNT, 1, 5, 5).double()


def _tokens() -> tuple[nn.Module, Tensor]:
    return Tokens(), torch.randn(COUNT, 6, 3).double()


def _words() -> tuple[nn.Module, Tensor]:
    return Tagger(), torch.randint(7, (COUNT, 5))


def _tied() -> tuple[nn.Module, Tensor]:
    return TiedTagger(), torch.randint(4, (COUNT, 2))


def _recurrent() -> tuple[nn.Module, Tensor]:
    return Recurrent(), torch.randn(COUNT, 4, 2).double()


PROBLEMS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "images": _images,
    "tokens": _tokens,
    "words": _words,
    "tied": _tied,
    "recurrent": _recurrent,
}


def problem(name: str, sizes: tuple[int, ...] = SIZES) -> Objective:
    torch.manual_seed(0)
    model, x = PROBLEMS[name]()
    return Objective(model.double().eval(), _ignored, [(part, part) for part in x.split(sizes)])


def _ignored(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.square().mean()


def all_kinds(name: str, sizes: tuple[int, ...] = SIZES) -> list[TangentKernel]:
    """Full, trace and sum, samples, and between examples, but for a model that goes another way only the first."""
    objective = problem(name, sizes)
    settings: list[Any] = [{}, {"outputs": "trace"}, {"outputs": "sum"}, {"outputs": "trace", "samples": 3}]
    other = problem(name).batches[1][0]
    settings += [{"against": other}, {"against": other, "outputs": "trace"}]
    return [ntk(objective, **each) for each in (settings[:3] if name == "recurrent" else settings)]


def same(measured: list[TangentKernel], expected: list[TangentKernel]) -> None:
    for one, other in zip(measured, expected, strict=True):
        size = float(other.matrix.abs().max())
        torch.testing.assert_close(one.matrix, other.matrix, rtol=0.0, atol=1e-12 * size)
        if one.errors is not None:
            assert other.errors is not None
            torch.testing.assert_close(one.errors, other.errors, rtol=0.0, atol=1e-6 * size)


@pytest.mark.parametrize("name", PROBLEMS)
def test_in_groups_and_in_pieces_it_is_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = all_kinds(name)
    assert not any("groups" in one.how for one in expected)
    held: list[float] = []
    weighed = records.Records._weighed

    def noted(self: records.Records, few: Objective) -> tuple[float, float]:
        common, each = weighed(self, few)
        held.append(common + each)
        return common, each

    monkeypatch.setattr(records.Records, "_weighed", noted)
    ntk(problem(name))
    # Room for five examples with one output each, twice.
    monkeypatch.setattr(records, "HELD_BYTES", int(10 * held[0]))
    monkeypatch.setattr(filled, "BLOCK_BYTES", 1)
    found = all_kinds(name)
    same(found, expected)
    assert all("groups for memory" in one.how for one in found[:2])
    # And for two, so that batches are cut.
    monkeypatch.setattr(records, "HELD_BYTES", int(4 * held[0]))
    same([ntk(problem(name), outputs="sum")], [expected[2]])


@pytest.mark.parametrize("name", [name for name in PROBLEMS if name != "recurrent"])
def test_every_way_to_a_product_gives_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = all_kinds(name)
    monkeypatch.setattr(stacked_products, "PIECE", 3)
    for small, chunk in ((0, 1), (10**9, 2**20), (10**9, 200)):
        monkeypatch.setattr(stacked_products, "SMALL", small)
        monkeypatch.setattr(stacked_products, "CHUNK_BYTES", chunk)
        same(all_kinds(name), expected)
    same(all_kinds(name, (COUNT,)), expected)


def peak(batches: int) -> int:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 2))
    x = torch.randn(4 * batches, 20, 3).double()
    objective = Objective(model.double(), _ignored, [(part, part) for part in x.split(4)])
    with Live() as live:
        ntk(objective, outputs="sum")
    return live.peak


def test_memory_does_not_grow_with_the_number_of_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = peak(3), peak(6)
    assert many > 1.5 * few
    monkeypatch.setattr(records, "HELD_BYTES", few // 4)
    monkeypatch.setattr(stacked_products, "CHUNK_BYTES", 2**14)
    few, many = peak(3), peak(6)
    assert many < 1.2 * few


def test_what_is_too_large_is_refused_before_anything_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "sheets", None)
    monkeypatch.setattr(entry, "MATRIX_BYTES", 8 * 29**2)
    match = r"too large; given: 10 examples with 3 outputs each: .* GiB; expected: at most .*outputs='trace' or 'sum'"
    with pytest.raises(DiagnosticsError, match=match):
        ntk(problem("tokens"))
    with pytest.raises(DiagnosticsError, match=r"in 9 parts.*by_layer=False"):
        ntk(problem("tokens"), outputs="trace", by_layer=True)
    monkeypatch.setattr(entry, "MOST_PASSES", 2)
    with pytest.raises(DiagnosticsError, match=r"too many outputs.*given: 3 for each.*samples="):
        ntk(problem("tokens"), outputs="trace")
