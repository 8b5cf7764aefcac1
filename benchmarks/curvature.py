"""Curvature against peers on three networks: what a product costs, and how long it takes to a number.

Costs are in gradients (forward and backward over the same batches), times are ratios, all taken in turns in one run on
one thread. Each table ends with its aim.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import curvature_peers as peers
from benchmarks.curvature_clock import in_turns
from benchmarks.curvature_problems import NAMES, Problem, problem
from benchmarks.tables import Rows, judge, number, ratio, show
from diagnostics import Hessian, spectral_density, top_eigenpairs

ROUTES = ("double backward", "linearize", "central differences")
WARM_UP = 130
"""Products before the clock starts: the default route changes its mind after 128, if ever."""

PRODUCT_AIMS = {"MLP": 1.5, "CNN": 1.7, "transformer": 2.0}
BLOCK_AIMS = {"MLP": 1.8, "CNN": 2.4, "transformer": 2.3}
COLD_AIM, TRACKED_AIM, DENSITY_AIM = 0.5, 0.25, 0.5

SAME_ERROR = 1e-6
"""Relative errors below this are rounding of float32 products, and count as equal."""

TRACKED_STEPS, TRACKED_TOL = 60, 1e-2
PROBES, LANCZOS_STEPS = 8, 64


def main(device: str = "cpu") -> None:
    """Print five tables."""
    torch.set_num_threads(1)
    problems = [problem(name, device) for name in NAMES]
    print(f"curvature, float32, {device}, one thread")
    for each in problems:
        shape = "x".join(str(length) for length in each.batches[0][0].shape)
        print(f"  {each.name}: {len(each.vectors(1)):,} parameters, batches of {shape}")
    print()
    # The peers do not choose it themselves, and fused attention has no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        one_product([each.first() for each in problems])
        many_products(problems)
        cold([each.first() for each in problems])
        tracked(problems[0].first())
        density([each.first() for each in problems[:2]])


def one_product(problems: Sequence[Problem]) -> None:
    """The cost of H @ v on one batch, for each route and each peer."""
    rows: Rows = {}
    routes = {}
    for each in problems:
        vectors = each.vectors(1)
        v = vectors[:, 0].contiguous()
        H = Hessian(each.objective())
        for _ in range(WARM_UP):
            H @ v
        contestants: dict[str, Callable[[], Any]] = {"gradient": each.gradient, "ours": lambda H=H, v=v: H @ v}
        for route in ROUTES:
            asked = Hessian(each.objective(), route=route)
            contestants[f"ours, {route}"] = lambda H=asked, v=v: H @ v
        contestants |= {name: call for name, (call, _) in peers.products(each, vectors).items()}
        in_turns(contestants)
        taken = in_turns(contestants, seconds=10, most=25)
        unit = taken.pop("gradient").median
        for name, result in taken.items():
            rows.setdefault(name, {})[each.name] = number(result, unit)
        judge(rows, each.name, taken["ours"].median / unit, PRODUCT_AIMS[each.name])
        routes[each.name] = H.route
    show("one product on one batch, in gradients", rows)
    _say(routes)


def many_products(problems: Sequence[Problem]) -> None:
    """The cost per vector of H @ V over all batches."""
    rows: Rows = {}
    routes = {}
    for each in problems:
        vectors = each.vectors(8)
        H = Hessian(each.objective())
        H @ vectors
        calls = {"ours": ((lambda H=H, V=vectors: H @ V), 8), **peers.products(each, vectors)}
        taken = in_turns({"gradient": each.gradient, **{name: call for name, (call, _) in calls.items()}}, 20, 9)
        unit = taken.pop("gradient").median
        for name, result in taken.items():
            rows.setdefault(name, {})[each.name] = number(result, unit * calls[name][1])
        judge(rows, each.name, taken["ours"].median / unit / 8, BLOCK_AIMS[each.name])
        routes[each.name] = H.route
    show("8 vectors over 8 batches, per vector, in gradients over all batches", rows)
    _say(routes)


def cold(problems: Sequence[Problem]) -> None:
    """The largest eigenvalue from nothing: relative error, and time as a ratio to ours."""
    rows: Rows = {}
    for each in problems:
        truth = _truth(each)
        contestants: dict[str, Callable[[], Any]] = {
            "ours": lambda each=each: float(top_eigenpairs(Hessian(each.objective())).values[0]),
            **peers.largest(each),
        }
        taken = in_turns(contestants, seconds=15, most=5)
        errors = {name: abs(t.value / truth - 1) for name, t in taken.items() if not t.failure}
        ours = taken["ours"].median
        for name, result in taken.items():
            error = f"{errors[name]:.0e}, " if name in errors else ""
            rows.setdefault(name, {})[each.name] = error + number(result, ours)
        equal = max(errors["ours"], SAME_ERROR)
        rivals = [taken[name].median for name, error in errors.items() if name != "ours" and error <= equal]
        judge(rows, each.name, ours / min(rivals, default=float("inf")), COLD_AIM)
    show("largest eigenvalue from nothing: relative error, time / ours", rows)
    print("  aim: time over that of the fastest peer whose error is no larger, rounding aside\n", flush=True)


def _truth(each: Problem) -> float:
    """λmax in float64, from another start; a peer whose error is near rounding confirms it."""
    return float(top_eigenpairs(Hessian(each.double().objective()), tol=1e-6, seed=1).values[0])


def tracked(each: Problem) -> None:
    """The largest eigenvalue after every step of gradient descent, from where the last search ended."""
    each = each.copy()
    optimizer = torch.optim.SGD(each.parameters, lr=0.1)
    objective = each.objective()
    restart = None
    seconds: dict[str, list[float]] = {"ours": [], "PyHessian": []}
    worst = dict.fromkeys(seconds, 0.0)
    products = []
    for step in range(TRACKED_STEPS):
        optimizer.zero_grad()
        x, y = each.batches[0]
        each.loss(each.model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        start = restart
        taken = in_turns(
            {
                "ours": lambda start=start: top_eigenpairs(Hessian(objective), tol=TRACKED_TOL, start=start),
                "PyHessian": peers.largest(each)["PyHessian"],
            },
        )
        pairs = taken["ours"].value
        restart = pairs.restart
        products.append(pairs.matvecs)
        for name, result in taken.items():
            seconds[name].append(result.median)
        if step % 10 == 9:
            truth = _truth(each)
            for name, value in (("ours", float(pairs.values[0])), ("PyHessian", taken["PyHessian"].value)):
                worst[name] = max(worst[name], abs(value / truth - 1))
    rows: Rows = {
        name: {each.name: f"{worst[name]:.0e}, {ratio(sum(seconds[name]) / sum(seconds['ours']))}"} for name in seconds
    }
    judge(rows, each.name, sum(seconds["ours"]) / sum(seconds["PyHessian"]), TRACKED_AIM)
    show(f"largest eigenvalue at each of {TRACKED_STEPS} steps: worst error, time / ours", rows)
    print(f"  ours: {statistics.mean(products):.1f} products per step\n", flush=True)


def density(problems: Sequence[Problem]) -> None:
    """A spectral density of eight probes; peers take one after the other, so one is timed and counted eight times."""
    rows: Rows = {}
    for each in problems:
        ours = {
            "ours": lambda each=each: spectral_density(Hessian(each.objective()), probes=PROBES, steps=LANCZOS_STEPS)
        }
        taken = in_turns({**ours, **peers.density(each, LANCZOS_STEPS)}, seconds=20, most=3)
        ends = taken.pop("curvlinops, ends").median
        totals = {name: t.median * (1 if name == "ours" else PROBES) for name, t in taken.items() if not t.failure}
        totals["curvlinops"] += ends
        for name, result in taken.items():
            rows.setdefault(name, {})[each.name] = "fails" if result.failure else ratio(totals[name] / totals["ours"])
        judge(rows, each.name, totals["ours"] / min(t for name, t in totals.items() if name != "ours"), DENSITY_AIM)
    show(f"spectral density, {PROBES} probes of {LANCZOS_STEPS} steps: time / ours", rows)
    print(flush=True)


def _say(routes: Mapping[str, str]) -> None:
    print("  ours: " + "; ".join(f"{name} by {route}" for name, route in routes.items()), end="\n\n")
