"""Norms of single examples' gradients against peers: what they cost beside a gradient, in time and in memory.

Times are in gradients (forward and backward over the same batch), all taken in turns in one run on one thread. Memory
is the most that torch's allocator had given out at once, above what was there before: tensors, the same on every run.
What kernels take for themselves is not in it, nor what the system keeps for the process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks import per_example_peers as peers
from benchmarks.curvature_clock import Taken, in_turns
from benchmarks.curvature_problems import Problem, problem
from benchmarks.tables import Rows, judge, number, ratio, show
from diagnostics import per_example_gradient_norms

NETWORKS = ("MLP", "CNN", "GroupNorm CNN", "wide GroupNorm CNN", "transformer", "wide transformer")
"""Wide ones, for what a call into torch costs does not grow with the network."""
TIME_AIM = 1.35
SECONDS, ROUNDS = 25, 60
HEAVY = 10
"""Gradients: who takes longer has its turn once, and the others have theirs."""


class PerToken(nn.CrossEntropyLoss):
    """The mean over tokens, with one row of labels for each sentence: an example is a sentence."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Logits (B·T, V) and labels (B, T)."""
        return super().forward(input, target.flatten())


def main() -> None:
    """Print three tables."""
    torch.set_num_threads(1)
    problems = [by_example(name) for name in NETWORKS]
    print("norms of the gradients of single examples, float32, cpu, one thread")
    for each in problems:
        x = each.batches[0][0]
        size = sum(parameter.numel() for parameter in each.parameters)
        print(f"  {each.name}: {size:,} parameters, a batch of {'x'.join(str(length) for length in x.shape)}")
    print(flush=True)
    times: Rows = {}
    errors: Rows = {}
    memory: Rows = {}
    reasons: dict[str, str] = {}
    for each in problems:
        calls = contestants(each)
        turns = {"gradient": each.gradient, **calls}
        in_turns(turns)
        first = in_turns(turns)
        _note(errors, reasons, each, {name: first[name] for name in calls})
        heavy = {name for name, result in first.items() if result.median > HEAVY * first["gradient"].median}
        taken = in_turns(
            {name: call for name, call in turns.items() if name not in heavy}, SECONDS, ROUNDS, before=each.gradient
        )
        taken |= {name: first[name] for name in heavy}
        _clock(times, each.name, taken)
        _weigh(memory, each, {name: call for name, call in calls.items() if not first[name].failure})
    show("time, in gradients", times)
    print("  every call of ours on a new Objective plans anew: the gradients of two examples alone\n")
    show("largest error, in the longest gradient, against a loop over examples in float64", errors)
    show("\nmost memory at once, in that of a gradient", memory)
    for name, reason in reasons.items():
        print(f"  {name}: {reason}")
    print(flush=True)


def by_example(name: str) -> Problem:
    """A problem with one batch, whose targets have one row for each example."""
    own = problem(name, "cpu", 1)
    (x, y) = own.batches[0]
    if len(y) == len(x):
        return own
    return Problem(name, own.model, PerToken(), [(x, y.view(len(x), -1))])


def contestants(each: Problem) -> dict[str, Callable[[], Tensor]]:
    """Calls that return the norms."""
    objective = each.objective()
    made = {
        "Opacus, ghost norms": peers.opacus_ghost,
        "BackPACK, BatchL2Grad": peers.backpack_norms,
        "BackPACK, BatchGrad": peers.backpack_gradients,
    }
    return {
        "ours": lambda: per_example_gradient_norms(objective).norms,
        "ours, a new Objective": lambda: per_example_gradient_norms(each.objective()).norms,
        **{name: _once(make, each) for name, make in made.items()},
    }


def _once(make: Callable[[Problem], peers.Norms], each: Problem) -> peers.Norms:
    """Set up by the first call, so that a peer that cannot be is one that fails."""
    made: list[peers.Norms] = []

    def norms() -> Tensor:
        if not made:
            made.append(make(each))
        return made[0]()

    return norms


def loop(each: Problem) -> Tensor:
    """The norms in float64, example by example."""
    own = each.double()
    x, y = own.batches[0]
    found = []
    for place in range(len(x)):
        one = slice(place, place + 1)
        parts = torch.autograd.grad(own.loss(own.model(x[one]), y[one]), own.parameters)
        found.append(sum(part.square().sum() for part in parts))
    return torch.stack(found).sqrt()


def peak(call: Callable[[], Any]) -> float:
    """Bytes in tensors at the highest, above those at the start."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    held = highest = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held)
    return float(highest)


def _note(errors: Rows, reasons: dict[str, str], each: Problem, taken: dict[str, Taken]) -> None:
    truth = loop(each)
    for name, result in taken.items():
        error = "fails" if result.failure else f"{float((result.value.double() - truth).abs().max() / truth.max()):.0e}"
        errors.setdefault(name, {})[each.name] = error
        if result.failure:
            reasons.setdefault(f"{name} on the {each.name}", result.failure)


def _clock(times: Rows, column: str, taken: dict[str, Taken]) -> None:
    unit = taken.pop("gradient").median
    for name, result in taken.items():
        times.setdefault(name, {})[column] = number(result, unit)
    ours = taken["ours"].median
    rivals = [result.median for name, result in taken.items() if not name.startswith("ours") and not result.failure]
    judge(times, column, ours / unit, TIME_AIM, "aim, in gradients")
    judge(times, column, ours / min(rivals, default=float("inf")), 1.0, "aim, of the fastest peer")


def _weigh(memory: Rows, each: Problem, calls: dict[str, Callable[[], Tensor]]) -> None:
    unit = peak(each.gradient)
    held = {name: peak(call) for name, call in calls.items()}
    for name, result in held.items():
        memory.setdefault(name, {})[each.name] = ratio(result / unit)
    rivals = [result for name, result in held.items() if not name.startswith("ours")]
    judge(memory, each.name, held["ours"] / min(rivals, default=float("inf")), 1.0, "aim, of the leanest peer")
