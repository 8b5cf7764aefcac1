"""The full tangent kernel against the ways that build a Jacobian or repeat the passes: time, error and memory.

Times are in gradients (forward and backward over the same batch), all taken in turns in one run on one thread. Memory
is the most that torch's allocator had given out at once, above what was there before.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks import tangent_kernel_peers as peers
from benchmarks.curvature_clock import Taken, in_turns
from benchmarks.curvature_problems import Problem, Transformer, problem
from benchmarks.per_example import peak
from benchmarks.tables import Rows, judge, number, ratio, show
from diagnostics import ntk

EXAMPLES = {"MLP": 64, "CNN": 64, "transformer": 16}
TIME_AIMS = {"MLP": 1 / 50, "CNN": 1 / 5, "transformer": 1 / 5}
MEMORY_AIM = 1 / 10
SECONDS, ROUNDS = 60, 9


class Classifier(nn.Module):
    """The transformer with ten outputs for a sentence."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Transformer()
        self.inner.head = nn.Linear(self.inner.head.in_features, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) to (B, 10)."""
        return self.inner(tokens).unflatten(0, (len(tokens), -1)).mean(1)


def main() -> None:
    """Print three tables."""
    torch.set_num_threads(1)
    problems = [_few(name) for name in EXAMPLES]
    print("the tangent kernel of all pairs of ten outputs, float32, cpu, one thread")
    for each in problems:
        size = sum(parameter.numel() for parameter in each.parameters)
        print(f"  {each.name}: {size:,} parameters, {EXAMPLES[each.name]} examples")
    print(flush=True)
    times: Rows = {}
    errors: Rows = {}
    memory: Rows = {}
    reasons: dict[str, str] = {}
    for each in problems:
        calls = contestants(each)
        taken = in_turns({"gradient": each.gradient, **calls}, SECONDS, ROUNDS)
        unit = taken.pop("gradient").median
        _note(errors, reasons, each, taken)
        _clock(times, each.name, taken, unit)
        _weigh(memory, each.name, {name: call for name, call in calls.items() if not taken[name].failure})
    show("time, in gradients", times)
    show("\nlargest error, in the largest entry, against the Jacobian in float64", errors)
    show("\nmost memory at once, in MiB", memory)
    for name, reason in reasons.items():
        print(f"  {name}: {reason}")
    print(flush=True)


def _few(name: str) -> Problem:
    own = problem(name, "cpu", 1)
    x, _ = own.batches[0]
    x = x[: EXAMPLES[name]]
    model = Classifier().eval() if name == "transformer" else own.model
    return Problem(name, model, nn.CrossEntropyLoss(), [(x, torch.randint(10, (len(x),)))])


def contestants(each: Problem) -> dict[str, Callable[[], Tensor]]:
    """Calls that return the kernel, (N·C, N·C), example-major."""
    objective, (x, _) = each.objective(), each.batches[0]
    return {
        "ours": lambda: ntk(objective).matrix,
        "ours, a new Objective": lambda: ntk(each.objective()).matrix,
        "torch.func, Jacobian": lambda: peers.jacobian_contraction(each.model, x),
        "nngeometry": lambda: peers.nngeometry_gram(each.copy().model, x),
    }


def _note(errors: Rows, reasons: dict[str, str], each: Problem, taken: dict[str, Taken]) -> None:
    own = each.double()
    truth = peers.jacobian_contraction(own.model, own.batches[0][0])
    for name, result in taken.items():
        error = "fails" if result.failure else f"{float((result.value - truth).abs().max() / truth.abs().max()):.0e}"
        errors.setdefault(name, {})[each.name] = error
        if result.failure:
            reasons[f"{name} on the {each.name}"] = result.failure


def _clock(times: Rows, column: str, taken: dict[str, Taken], unit: float) -> None:
    for name, result in taken.items():
        times.setdefault(name, {})[column] = number(result, unit)
    ours = taken["ours"].median
    judge(times, column, ours / taken["torch.func, Jacobian"].median, TIME_AIMS[column], "aim, of the Jacobian's")
    if not taken["nngeometry"].failure:
        judge(times, column, ours / taken["nngeometry"].median, 1.0, "aim, of nngeometry's")


def _weigh(memory: Rows, column: str, calls: dict[str, Callable[[], Tensor]]) -> None:
    held = {name: peak(call) for name, call in calls.items()}
    for name, result in held.items():
        memory.setdefault(name, {})[column] = ratio(result / 2**20)
    judge(memory, column, held["ours"] / held["torch.func, Jacobian"], MEMORY_AIM, "aim, of the Jacobian's")
