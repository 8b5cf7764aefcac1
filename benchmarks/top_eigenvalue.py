"""The largest Hessian eigenvalue: accuracy and time of our solver against peers at their defaults, in one run.

The reference is the dense float64 Hessian. Times are the median of five, and are shown as ratios to ours.
"""

from __future__ import annotations

import contextlib
import copy
import io
import statistics
import time
from collections.abc import Callable

import torch
from hessian_eigenthings import HessianOperator, lanczos
from pyhessian import hessian as pyhessian
from scipy.sparse.linalg import eigsh
from torch import nn
from torch.func import functional_call

from diagnostics import Hessian, Objective, top_eigenpairs

REPEATS = 5
TRAINING = (0, 60, 2000)


def network(steps: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A tanh network of 1002 parameters on 256 Gaussian points, after some steps of gradient descent."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 10))
    x, y = torch.randn(256, 20), torch.randint(10, (256,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, x, y


def exact(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """λmax of the dense Hessian, in float64."""
    model, x = copy.deepcopy(model).double(), x.double()
    parameters = dict(model.named_parameters())
    flat = torch.cat([tensor.detach().flatten() for tensor in parameters.values()])

    def loss(vector: torch.Tensor) -> torch.Tensor:
        parts = vector.split([tensor.numel() for tensor in parameters.values()])
        named = {name: part.view_as(parameters[name]) for name, part in zip(parameters, parts, strict=True)}
        return nn.functional.cross_entropy(functional_call(model, named, (x,)), y)

    return float(torch.linalg.eigvalsh(torch.func.hessian(loss)(flat))[-1])


def contestants(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, Callable[[], float]]:
    """Each a call that returns λmax at the defaults of its package."""
    criterion = nn.CrossEntropyLoss()
    objective = Objective(model, criterion, (x, y))

    def ours() -> float:
        return float(top_eigenpairs(Hessian(objective), k=1).values[0])

    def scipy() -> float:
        return float(eigsh(Hessian(objective).to_scipy(), k=1, which="LA", tol=1e-3)[0][0])

    def power() -> float:
        other = pyhessian(copy.deepcopy(model), criterion, data=(x, y), cuda=False)
        return float(other.eigenvalues()[0][0])

    def eigenthings(k: int) -> float:
        operator = HessianOperator(copy.deepcopy(model), [(x, y)], lambda m, batch: criterion(m(batch[0]), batch[1]))
        return float(max(lanczos(operator, k=k).eigenvalues))

    return {
        "ours": ours,
        "our operator, scipy eigsh": scipy,
        "PyHessian": power,
        "hessian-eigenthings k=1": lambda: eigenthings(1),
        "hessian-eigenthings k=10": lambda: eigenthings(10),
    }


def main() -> None:
    """Print a table: relative error at each stage of training, and time as a ratio to ours."""
    torch.set_num_threads(1)
    errors: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    for steps in TRAINING:
        model, x, y = network(steps)
        truth = exact(model, x, y)
        for name, call in contestants(model, x, y).items():
            for _ in range(REPEATS):
                began = time.perf_counter()
                with contextlib.redirect_stdout(io.StringIO()):
                    value = call()
                seconds.setdefault(name, []).append(time.perf_counter() - began)
            errors.setdefault(name, []).append(abs(value - truth) / abs(truth))
    base = statistics.median(seconds["ours"])
    print("largest Hessian eigenvalue, 1002 parameters, float32, one thread")
    print(f"{'':<28}" + "".join(f"{f'error @{steps}':>14}" for steps in TRAINING) + f"{'time / ours':>14}")
    for name, row in errors.items():
        ratio = statistics.median(seconds[name]) / base
        print(f"{name:<28}" + "".join(f"{error:>14.1e}" for error in row) + f"{ratio:>14.2f}")
    print()
