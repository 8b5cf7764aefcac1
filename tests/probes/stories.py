"""Ways to train, each a function ``story(watch)`` that returns everything a training run leaves behind.

``watch(model, optimizer, make_objective)`` is entered around the loop: a Monitor, or nothing. Whatever it does, two
tellings of a story must leave the same bits; so the Objective too is made by the one who watches.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from diagnostics import Objective
from tests.probes.bits import Trace, batches, data, loader, start, trace

Watcher = Callable[[nn.Module, Any, Callable[[], Objective]], AbstractContextManager[Any]]
Story = Callable[[Watcher], Trace]

cross_entropy = nn.CrossEntropyLoss()
STEPS = 7


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def _plain_loop(watch: Watcher, model: nn.Module, optimizer: Any, *shape: int, mode: str = "eval") -> Trace:
    source, losses = loader(*shape), []
    with watch(model, optimizer, lambda: Objective(model, cross_entropy, data(*shape), mode=mode)):  # type: ignore[arg-type]
        for x, y in batches(source, STEPS):
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return trace(model, optimizer, losses)


def _with(optimizer: Callable[..., torch.optim.Optimizer], **settings: Any) -> Story:
    def story(watch: Watcher) -> Trace:
        start()
        model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 2))
        return _plain_loop(watch, model, optimizer(model.parameters(), lr=0.02, **settings))

    return story


def train_mode_objective(watch: Watcher) -> Trace:
    start()
    model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 2))
    return _plain_loop(watch, model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), mode="train")


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, dim_feedforward=8, dropout=0.2, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))  # type: ignore[no-any-return]


def transformer(watch: Watcher) -> Trace:
    start()
    model = Transformer()
    return _plain_loop(watch, model, torch.optim.AdamW(model.parameters(), lr=0.01), 5, 8)


def spectral_norm_in_train_mode(watch: Watcher) -> Trace:
    """Every forward pass in train mode writes to the buffers of the parametrisation."""
    start()
    model = nn.Sequential(spectral_norm(nn.Linear(3, 5)), nn.Tanh(), nn.Linear(5, 2))
    return _plain_loop(watch, model, torch.optim.SGD(model.parameters(), lr=0.05), mode="train")


def recurrent(watch: Watcher) -> Trace:
    start()

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cells(x)[0][:, -1].tanh())  # type: ignore[no-any-return]

    model = Last()
    return _plain_loop(watch, model, torch.optim.RMSprop(model.parameters(), lr=0.01), 4, 3)


def frozen_tied_and_half_in_eval_mode(watch: Watcher) -> Trace:
    start()
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    norm = nn.BatchNorm1d(3).eval()
    model = nn.Sequential(first, norm, second, nn.Tanh(), nn.Dropout(0.2), nn.Linear(3, 2))
    norm.requires_grad_(False)
    model[5].bias.requires_grad_(False)
    return _plain_loop(watch, model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5))


def joined_in_the_middle_of_an_epoch(watch: Watcher) -> Trace:
    """The Objective is drawn from the training DataLoader itself, while it is being read."""
    start()
    model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    source, losses = loader(generator=torch.Generator().manual_seed(9)), []
    watcher: AbstractContextManager[Any] | None = None
    for index, (x, y) in enumerate(batches(source, STEPS)):
        if index == 2:
            watcher = watch(model, optimizer, lambda: Objective(model, cross_entropy, source))
            watcher.__enter__()
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert watcher is not None
    watcher.__exit__(None, None, None)
    return trace(model, optimizer, losses, order=source.generator.get_state())


def accumulated_clipped_and_scheduled(watch: Watcher) -> Trace:
    start()
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=2 * STEPS)
    losses = []
    with watch(model, optimizer, lambda: Objective(model, cross_entropy, data())):
        for index, (x, y) in enumerate(batches(loader(), 3 * STEPS)):
            loss = cross_entropy(model(x), y) / 3
            loss.backward()
            losses.append(loss.item())
            if index % 3 == 2:
                losses.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.1)))
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad(set_to_none=False)
    return trace(model, optimizer, losses, scheduler=scheduler.state_dict()["last_epoch"])


def _scaled(**settings: Any) -> Story:
    def story(watch: Watcher) -> Trace:
        """The third loss is infinite: its step is skipped."""
        start()
        model = small()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, **settings)
        scaler, losses = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2), []
        with watch(model, optimizer, lambda: Objective(model, cross_entropy, data())):
            for index, (x, y) in enumerate(batches(loader(), STEPS + 1)):
                optimizer.zero_grad()
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loss = cross_entropy(model(x), y)
                scaler.scale(loss * (float("inf") if index == 2 else 1.0)).backward()
                scaler.step(optimizer)
                scaler.update()
                losses.append(loss.item())
        return trace(model, optimizer, losses, scale=scaler.state_dict())

    return story


def closure(watch: Watcher) -> Trace:
    start()
    model, (x, y), losses = small(), data(), []
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.2, max_iter=3)

    def evaluate() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        losses.append(loss.item())
        return loss

    with watch(model, optimizer, lambda: Objective(model, cross_entropy, (x, y))):
        for _ in range(STEPS):
            optimizer.step(evaluate)
    return trace(model, optimizer, losses)


def autocast(watch: Watcher) -> Trace:
    """Also the steps are taken inside autocast, and so are the measurements."""
    start()
    model = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return _plain_loop(watch, model, optimizer)


def _compiled(backend: str) -> Story:
    def story(watch: Watcher) -> Trace:
        start()
        torch._dynamo.reset()
        model, graphs = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(0.2), nn.Linear(5, 2)), []

        def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
            graphs.append(len(inputs))
            return torch._dynamo.lookup_backend(backend)(graph, inputs)  # type: ignore[no-any-return]

        compiled = torch.compile(model, backend=counting)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        left_behind = _plain_loop(watch, compiled, optimizer)
        assert graphs
        return left_behind | {"graphs": graphs}

    return story


def compiled_in_place(watch: Watcher) -> Trace:
    """There is no wrapper to look through: the very module that is measured is compiled."""
    start()
    torch._dynamo.reset()
    model, graphs = small(), []

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(len(inputs))
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)  # type: ignore[no-any-return]

    model.compile(backend=counting)
    return _plain_loop(watch, model, torch.optim.SGD(model.parameters(), lr=0.05)) | {"graphs": graphs}


def compiled_step(watch: Watcher) -> Trace:
    """``optimizer.step`` itself is compiled, with our hooks in it."""
    start()
    torch._dynamo.reset()
    model, (x, y), graphs, losses = small(), data(), [], []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(len(inputs))
        return graph

    with watch(model, optimizer, lambda: Objective(model, cross_entropy, (x, y))):
        step = torch.compile(optimizer.step, backend=counting)
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            step()
            losses.append(loss.item())
    return trace(model, optimizer, losses, graphs=graphs)


def hooked(watch: Watcher) -> Trace:
    """Somebody else watches gradients on modules, tensors, accumulation and steps."""
    start()
    model, calls = small(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model[2].register_full_backward_hook(lambda *_: calls.append("module backward"))
    model[2].register_full_backward_pre_hook(lambda *_: calls.append("module backward, before"))
    model[0].weight.register_hook(lambda gradient: calls.append("tensor"))
    model[2].weight.register_post_accumulate_grad_hook(lambda tensor: calls.append("accumulated"))
    optimizer.register_step_post_hook(lambda *_: calls.append("step"))
    return _plain_loop(watch, model, optimizer) | {"calls": calls}


STORIES: dict[str, Story] = {
    "SGD, batch norm, dropout, shuffled loader": _with(torch.optim.SGD, momentum=0.9, nesterov=True),
    "Adam": _with(torch.optim.Adam, amsgrad=True),
    "AdamW, fused": _with(torch.optim.AdamW, fused=True),
    "RMSprop": _with(torch.optim.RMSprop, centered=True, momentum=0.5),
    "train mode objective": train_mode_objective,
    "transformer": transformer,
    "spectral norm in train mode": spectral_norm_in_train_mode,
    "recurrent": recurrent,
    "frozen, tied, half in eval mode": frozen_tied_and_half_in_eval_mode,
    "joined in the middle of an epoch": joined_in_the_middle_of_an_epoch,
    "accumulated, clipped, scheduled": accumulated_clipped_and_scheduled,
    "grad scaler": _scaled(),
    "grad scaler, fused": _scaled(fused=True),
    "closure": closure,
    "autocast": autocast,
    "compiled, eager": _compiled("eager"),
    "compiled, aot_eager": _compiled("aot_eager"),
    "compiled in place": compiled_in_place,
    "compiled step": compiled_step,
    "hooked": hooked,
}
