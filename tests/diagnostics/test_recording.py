"""Every operation that uses a parameter is seen, and gives each example the gradient that it has alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from diagnostics import Objective, gradient_gram, per_example_gradient_norms
from diagnostics.noise.per_example import per_example_gradient_dots
from diagnostics.recorded import contractions, gram
from diagnostics.recorded.contributions import Contribution, Convolved, Direct, Lookup, Outer, joined
from diagnostics.recorded.recording import Recording
from tests.reference.per_example_loops import gradients

EXAMPLES = 6


class Of(nn.Module):
    """A model of parameters and a function of them."""

    def __init__(self, function: Callable[..., Tensor], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, **dict(self.named_parameters()))


class Steps(nn.Module):
    """One weight in every step through a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 3)
        for step in range(x.shape[1]):
            h = self.cell(x[:, step], h)
        return h


class Attends(nn.Module):
    def __init__(self, batch_first: bool, **settings: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=batch_first, **settings)
        self.first, self.other = batch_first, nn.Linear(4, settings.get("kdim", 4))

    def forward(self, x: Tensor) -> Tensor:
        key = self.other(x) if self.attention.kdim != 4 else x
        if not self.first:
            x, key = x.transpose(0, 1), key.transpose(0, 1)
        y = self.attention(x, key, key)[0]
        return y if self.first else y.transpose(0, 1)


class Padded(nn.Module):
    """A class token before the tokens, positions added to all: shapes of a vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 4)), nn.Parameter(torch.randn(1, 6, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        return self.head(torch.tanh(x)[:, 0])


class Embeds(nn.Module):
    """Tokens, positions by a table, and a head that may be the first table."""

    def __init__(self, tied: bool, padding: int | None = None) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(7, 4, padding_idx=padding), nn.Embedding(9, 4)
        self.head = nn.Linear(4, 7, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        return self.head(torch.tanh(x))


def _tied_by_index(ids: Tensor, table: Tensor) -> Tensor:
    return torch.tanh(table[ids]) @ table.t()


def _in_place(x: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
    y = torch.zeros_like(x) + x * scale
    y += bias
    y.tanh_()
    return y


def _interleaved(x: Tensor, w: Tensor) -> Tensor:
    return F.linear(x.transpose(0, 1).reshape(-1, 4), w).view(5, -1, 3).transpose(0, 1)


def _parts(x: Tensor, w: Tensor) -> Tensor:
    return F.linear(x, w[:2]) * F.linear(x, w[2:4]) + F.linear(x, w.chunk(3)[2])


class ByHand(torch.autograd.Function):
    """A product that no function mode sees."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return g @ w.T, x.flatten(0, -2).T @ g.flatten(0, -2)


def images(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(EXAMPLES, *shape)


def ids() -> Tensor:
    return torch.randint(7, (EXAMPLES, 5))


def normed(norm: nn.Module) -> nn.Module:
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    for name, buffer in norm.named_buffers():
        if "running" in name:
            nn.init.uniform_(buffer, 0.5, 2.0)
    return norm


SEQUENCE, IMAGE = images(5, 4), images(4, 6, 7)
KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Linear(4, 3), images(4)),
    "linear on tokens": (lambda: nn.Linear(4, 3), SEQUENCE),
    "linear without bias, long": (lambda: nn.Linear(2, 2, bias=False), images(11, 2)),
    "functional linear": (lambda: Of(lambda x, w, b: F.linear(x, w, b), w=(3, 4), b=(3,)), SEQUENCE),
    "linear on flattened tokens": (
        lambda: Of(lambda x, w: F.linear(x.reshape(-1, 4), w).view(len(x), 5, 3), w=(3, 4)), SEQUENCE
    ),
    "linear on interleaved tokens": (
        lambda: Of(_interleaved, w=(3, 4)), SEQUENCE
    ),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), images(4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1), groups=2), IMAGE),
    "conv2d, same padding, even kernel": (lambda: nn.Conv2d(4, 3, (2, 4), padding="same"), IMAGE),
    "conv2d, depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), IMAGE),
    "conv2d, circular": (lambda: nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular"), IMAGE),
    "conv2d, 1 by 1": (lambda: nn.Conv2d(4, 2, 1), IMAGE),
    "conv3d": (lambda: nn.Conv3d(2, 3, (1, 2, 3), stride=(1, 2, 1), padding=1), images(2, 3, 4, 5)),
    "conv2d on frames": (
        lambda: Of(lambda x, w, b: F.conv2d(x.flatten(0, 1), w, b).unflatten(0, x.shape[:2]), w=(3, 2, 2, 2), b=(3,)),
        images(3, 2, 4, 5),
    ),
    "conv_transpose1d": (
        lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), images(4, 5)
    ),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(4, 3, (3, 2), stride=(2, 3), padding=1, dilation=(2, 1)), IMAGE),
    "conv_transpose3d": (lambda: nn.ConvTranspose3d(2, 3, 2, stride=(1, 2, 1)), images(2, 2, 3, 2)),
    "embedding, repeated ids": (lambda: nn.Embedding(7, 3), ids),
    "embedding, padding": (lambda: nn.Embedding(7, 3, padding_idx=-2), ids),
    "embedding, sparse": (lambda: nn.Embedding(7, 3, sparse=True), ids),
    "embedding by index": (lambda: Of(lambda i, table: table[i], table=(7, 3)), ids),
    "embeddings and head": (lambda: Embeds(tied=False, padding=1), ids),
    "tied head": (lambda: Embeds(tied=True), ids),
    "tied head, padding": (lambda: Embeds(tied=True, padding=2), ids),
    "tied by index and transpose": (lambda: Of(_tied_by_index, table=(7, 3)), ids),
    "layer norm": (lambda: normed(nn.LayerNorm(4)), SEQUENCE),
    "layer norm of two dimensions": (lambda: normed(nn.LayerNorm((5, 4))), SEQUENCE),
    "rms norm": (lambda: normed(nn.RMSNorm(4)), SEQUENCE),
    "group norm": (lambda: normed(nn.GroupNorm(2, 4)), IMAGE),
    "instance norm": (lambda: normed(nn.InstanceNorm2d(4, affine=True)), IMAGE),
    "instance norm, running statistics": (
        lambda: normed(nn.InstanceNorm1d(4, affine=True, track_running_stats=True)), images(4, 5)
    ),
    "batch norm, eval": (lambda: normed(nn.BatchNorm2d(4)), IMAGE),
    "batch norm of vectors, eval": (lambda: normed(nn.BatchNorm1d(4)), images(4)),
    "addmm": (lambda: Of(lambda x, w, b: torch.addmm(b, x, w, beta=0.5, alpha=2.0), w=(4, 3), b=(3,)), images(4)),
    "addmm on flattened tokens": (
        lambda: Of(lambda x, w, b: torch.addmm(b, x.view(-1, 4), w).view(*x.shape[:-1], 3), w=(4, 3), b=(3,)), SEQUENCE
    ),
    "matmul": (lambda: Of(lambda x, w: x @ w, w=(4, 3)), SEQUENCE),
    "matmul with a vector": (lambda: Of(lambda x, w: x @ w, w=(4,)), SEQUENCE),
    "matmul from the left": (lambda: Of(lambda x, w: torch.matmul(w, x), w=(3, 5)), SEQUENCE),
    "matmul, examples last": (lambda: Of(lambda x, w: (w @ x.T).T, w=(3, 4)), images(4)),
    "bias and scale": (lambda: Of(lambda x, b, s: (x + b) * s, b=(4,), s=(5, 1)), SEQUENCE),
    "bias and scale from the left": (lambda: Of(lambda x, b, s: b - s * x, b=(1, 5, 4), s=()), SEQUENCE),
    "division and powers": (
        lambda: Of(lambda x, a, b: x / (a.abs() + 1) - b.exp() ** torch.tanh(x), a=(4,), b=(4,)), SEQUENCE
    ),
    "scaled sum": (lambda: Of(lambda x, b: torch.add(x, b, alpha=3.0), b=(4,)), SEQUENCE),
    "repeated": (lambda: Of(lambda x, b: torch.cat([b.repeat(len(x), 1, 1), x], 1), b=(1, 2, 4)), SEQUENCE),
    "written in place": (lambda: Of(_in_place, bias=(4,), scale=(4,)), SEQUENCE),
    "channels": (lambda: Of(lambda x, s: torch.tanh(x * s.view(1, -1, 1, 1)), s=(4,)), IMAGE),
    "prelu": (lambda: nn.PReLU(4), IMAGE),
    "class token and positions": (Padded, SEQUENCE),
    "attention": (lambda: Attends(True), SEQUENCE),
    "attention, tokens first": (lambda: Attends(False), SEQUENCE),
    "attention, keys of another size": (lambda: Attends(True, kdim=3, vdim=3), SEQUENCE),
    "transformer layer": (lambda: nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True), SEQUENCE),
    "tied linear layers": (lambda: Of(lambda x, w: F.linear(torch.tanh(F.linear(x, w)), w), w=(4, 4)), SEQUENCE),
    "a layer and its transpose": (lambda: Of(lambda x, w: torch.tanh(x @ w.t()) @ w, w=(3, 4)), SEQUENCE),
    "views": (
        lambda: Of(_parts, w=(6, 4)), SEQUENCE
    ),
    "used in every step": (Steps, SEQUENCE),
    "einsum": (lambda: Of(lambda x, w: torch.einsum("ntd,dk->nkt", x, w), w=(4, 3)), SEQUENCE),
    "a function written by hand": (lambda: Of(ByHand.apply, w=(4, 3)), SEQUENCE),
    "a known use and one written by hand": (
        lambda: Of(lambda x, w: ByHand.apply(torch.tanh(x @ w), w), w=(4, 4)), SEQUENCE
    ),
    "weight norm": (lambda: weight_norm(nn.Linear(4, 3)), SEQUENCE),
    "used by nothing": (lambda: Of(lambda x, w, unused: x @ w, w=(4, 3), unused=(2,)), images(4)),
}  # fmt: skip
SLOW = {"used in every step", "einsum", "a function written by hand", "a known use and one written by hand"}
"""Not all of their parameters are recorded: a recurrent cell is one operation, functions by hand are not seen."""


def curved(outputs: Tensor, targets: Tensor) -> Tensor:
    return (torch.sin(outputs) * targets + outputs.square()).flatten(1).sum(1).mean()


def case(kind: str) -> tuple[nn.Module, Tensor, Tensor]:
    make, data = KINDS[kind]
    torch.manual_seed(3)
    model, x = make().double().eval(), data()
    x = x.double() if x.is_floating_point() else x
    with torch.no_grad():
        targets = torch.randn_like(model(x))
    return model, x, targets


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer_gives_the_gradients_of_the_loop(kind: str) -> None:
    model, x, targets = case(kind)
    twin = gradients(model, lambda m, i: curved(m(x[i : i + 1]), targets[i : i + 1]), EXAMPLES)
    objective = Objective(model, curved, (x, targets))
    measured = per_example_gradient_norms(objective)
    torch.testing.assert_close(measured.norms, twin.norm(dim=1), rtol=1e-9, atol=1e-12)
    assert measured.mean_square.value == pytest.approx(float(twin.mean(0).square().sum()), rel=1e-9)
    for (name, squares), own in zip(measured.squares.items(), twin.split(objective.space.sizes, dim=1), strict=True):
        torch.testing.assert_close(squares, own.square().sum(1), rtol=1e-9, atol=1e-12, msg=name)
    gram = gradient_gram(objective)
    torch.testing.assert_close(gram.matrix, twin @ twin.T, rtol=1e-9, atol=1e-9)
    vector = torch.randn(objective.num_parameters, dtype=torch.float64)
    torch.testing.assert_close(per_example_gradient_dots(objective, vector), twin @ vector, rtol=1e-9, atol=1e-9)
    # The loop over examples would be right as well: that it was not taken is what is shown here.
    assert (set(measured.routes.values()) == {"recorded"}) is (kind not in SLOW), measured.routes
    assert measured.routes == gram.routes


@pytest.mark.parametrize(
    "kind", ["linear", "conv2d", "tied head", "attention", "views", "a known use and one written by hand"]
)
def test_several_batches_of_which_two_share_a_plan(kind: str) -> None:
    """Each example counts by its share of all, and what was found wrong in one batch is not trusted in the next."""
    model, x, targets = case(kind)
    objective = Objective(model, curved, [(x[:5], targets[:5]), (x[5:], targets[5:]), (x[:4], targets[:4])])
    order = [*range(6), *range(4)]
    twin = gradients(model, lambda m, i: curved(m(x[order[i]][None]), targets[order[i]][None]), 10)
    measured = per_example_gradient_norms(objective)
    torch.testing.assert_close(measured.norms, twin.norm(dim=1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient_gram(objective).matrix, twin @ twin.T, rtol=1e-9, atol=1e-9)
    assert measured.mean_square.value == pytest.approx(float(objective.gradient().square().sum()), rel=1e-9)


def test_operations_inside_attention_are_seen_one_by_one() -> None:
    attention = nn.MultiheadAttention(4, 2, batch_first=True).eval()
    x = torch.randn(2, 3, 4)
    with Recording(dict(attention.named_parameters())) as recording:
        attention(x, x, x)
    names = [use.function.__name__ for use in recording.uses]
    assert names == ["linear", "linear"] or names == ["linear"] * 4, [use.key for use in recording.uses]
    used = {name for use in recording.uses for name, _ in use.operands}
    assert used == {name for name, _ in attention.named_parameters()}


def test_an_operation_that_writes_into_an_output_later_does_not_move_its_edge() -> None:
    weight, x = torch.randn(2, 3, requires_grad=True), torch.randn(4, 3)
    with Recording({"weight": weight}) as recording:
        y = F.linear(x, weight)
        y.mul_(3.0)
    (gradient,) = torch.autograd.grad(y.sum(), recording.uses[0].edge)
    assert torch.equal(gradient, torch.full((4, 2), 3.0))


def _outer(groups: int, tokens: int) -> Outer:
    return Outer(
        torch.randn(3, groups, tokens, 6 // groups, dtype=torch.float64),
        torch.randn(3, groups, tokens, 5, dtype=torch.float64),
    )


def _lookup(tokens: int) -> Lookup:
    return Lookup(torch.randint(6, (3, tokens)), torch.randn(3, tokens, 5, dtype=torch.float64), 6)


def _convolved(frames: int) -> Convolved:
    sides = torch.randn(3, frames, 6, 4, dtype=torch.float64)
    images = torch.randn(3, frames, 5, 4, dtype=torch.float64)
    return Convolved(sides, images, (1,), (1,), ((0, 0),), (1,), 1)


SUMS: dict[str, Callable[[], list[Contribution]]] = {
    "outer": lambda: [_outer(1, 4)],
    "outer, one token": lambda: [_outer(1, 1)],
    "outer in groups": lambda: [_outer(3, 4)],
    "outer in groups, one token": lambda: [_outer(3, 1)],
    "two outer": lambda: [_outer(1, 4), _outer(1, 2)],
    "lookup": lambda: [_lookup(4)],
    "two lookups": lambda: [_lookup(4), _lookup(3)],
    "outer and lookup": lambda: [_outer(1, 3), _lookup(4)],
    "lookup and outer and another": lambda: [_lookup(4), _outer(1, 3), _outer(1, 2), _lookup(2)],
    "convolution": lambda: [_convolved(1)],
    "convolution of frames": lambda: [_convolved(2)],
    "convolution and outer": lambda: [_convolved(2), _outer(1, 3)],
    "direct": lambda: [Direct(torch.randn(3, 30, dtype=torch.float64))],
    "direct and all others": lambda: [
        _lookup(4), _outer(1, 3), Direct(torch.randn(3, 30, dtype=torch.float64)), _convolved(2)
    ],
}  # fmt: skip


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("what", SUMS)
def test_inner_products_of_sums_on_both_routes(what: str, tokens: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two routes are the same number, whichever is cheaper."""
    first, second = SUMS[what](), SUMS[what]()
    direct = any(isinstance(one, Direct) for one in first)
    for module in (contractions, gram):
        monkeypatch.setattr(module, "is_cheaper_by_tokens", lambda *_: tokens and not direct)
    rows = torch.cat([sum(one.rows(30) for one in some) for some in (first, second)])
    torch.testing.assert_close(contractions.squared_norms(first, 30), rows[:3].square().sum(1))
    torch.testing.assert_close(contractions.squared_norms(joined(second), 30), rows[3:].square().sum(1))
    built = contractions.norms_and_sum(joined(first), 30)
    torch.testing.assert_close(built, (rows[:3].square().sum(1), rows[:3].sum(0)))
    for some in ([first, second], [joined(first), joined(second)]):
        batches = [(torch.arange(3), some[0]), (3 + torch.arange(3), some[1])]
        for most in (6, 3, 2):
            monkeypatch.setattr(gram, "MOST_EXAMPLES", most)
            within, across = torch.zeros(2, 6, 6, dtype=torch.float64)
            gram.add_products(within, batches, batches, 30)
            torch.testing.assert_close(within, rows @ rows.T)
            gram.add_products(across, batches[:1], batches[1:], 30)
            torch.testing.assert_close(across[:3, 3:], rows[:3] @ rows[3:].T)
            assert torch.equal(across, across.T)
            assert not across[:3, :3].any()
    vector = torch.randn(30, dtype=torch.float64)
    torch.testing.assert_close(contractions.dots(first, vector), rows[:3] @ vector)
