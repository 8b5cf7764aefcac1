"""The peers, each used as its documentation says, on a copy of the problem that it may dirty."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import curvlinops
import hessian_eigenthings as eigenthings
import numpy
import pyhessian
from curvlinops.papyan2020traces.spectrum import approximate_boundaries, fast_lanczos
from pyhessian.utils import hessian_vector_product
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from benchmarks.curvature_problems import Problem

Call = Callable[[], Any]


def pyhessian_of(problem: Problem) -> pyhessian.hessian:
    """One batch, whose graph it keeps, or a dataloader."""
    data = {"data": problem.batches[0]} if len(problem.batches) == 1 else {"dataloader": problem.batches}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using backward")
        return pyhessian.hessian(problem.model, problem.loss, cuda=problem.parameters[0].is_cuda, **data)


def curvlinops_of(problem: Problem, **settings: Any) -> curvlinops.HessianLinearOperator:
    """With its checks for determinism unless told otherwise, as users get it."""
    return curvlinops.HessianLinearOperator(
        problem.model, problem.loss, problem.parameters, problem.batches, **settings
    )


def eigenthings_of(problem: Problem, **settings: Any) -> eigenthings.HessianOperator:
    """By double backward unless told otherwise."""
    return eigenthings.HessianOperator(
        problem.model, problem.batches, eigenthings.supervised_loss(problem.loss), **settings
    )


def products(problem: Problem, vectors: Tensor) -> dict[str, tuple[Call, int]]:
    """Calls that multiply, and by how many vectors: all of (P, K) at once where a peer can, else only the first."""
    one = vectors[:, 0].contiguous()
    power = pyhessian_of(problem.copy())
    pieces = one.split([parameter.numel() for parameter in power.params])
    parts = [piece.view_as(parameter) for piece, parameter in zip(pieces, power.params, strict=True)]
    autograd, differences = (
        eigenthings_of(problem.copy(), method=method) for method in ("autograd", "finite_difference")
    )
    jvp = curvlinops_of(problem.copy(), check_deterministic=False)
    several = vectors.shape[1] > 1
    return {
        "PyHessian": (
            (lambda: power.dataloader_hv_product(parts))
            if power.full_dataset
            else (lambda: hessian_vector_product(power.gradsH, power.params, parts)),
            1,
        ),
        "hessian-eigenthings": (lambda: autograd.matvec(one), 1),
        "hessian-eigenthings, differences": (lambda: differences.matvec(one), 1),
        "curvlinops": ((lambda: jvp @ vectors) if several else (lambda: jvp @ one), vectors.shape[1]),
    }


def largest(problem: Problem) -> dict[str, Call]:
    """Calls that return λmax, from nothing."""

    def power() -> float:
        return float(pyhessian_of(problem.copy()).eigenvalues()[0][0])

    def lanczos(k: int) -> float:
        return float(max(eigenthings.lanczos(eigenthings_of(problem.copy()), k=k, seed=0).eigenvalues))

    def arpack_on_eigenthings() -> float:
        operator = eigenthings_of(problem.copy())
        size, like = operator.size, problem.vectors(1)[:, 0]

        def product(array: numpy.ndarray) -> numpy.ndarray:
            return operator.matvec(like.new_tensor(array)).cpu().numpy()

        return _arpack(LinearOperator((size, size), matvec=product, dtype=numpy.float32))

    return {
        "curvlinops, scipy eigsh": lambda: _arpack(curvlinops_of(problem.copy()).to_scipy()),
        "hessian-eigenthings, scipy eigsh": arpack_on_eigenthings,
        "hessian-eigenthings k=1": lambda: lanczos(1),
        "hessian-eigenthings k=5": lambda: lanczos(5),
        "hessian-eigenthings k=10": lambda: lanczos(10),
        "PyHessian": power,
    }


def _arpack(operator: LinearOperator) -> float:
    start = numpy.random.default_rng(0).standard_normal(operator.shape[0]).astype(operator.dtype)
    return float(eigsh(operator, k=1, which="LA", tol=1e-3, v0=start, return_eigenvectors=False)[0])


def density(problem: Problem, steps: int) -> dict[str, Call]:
    """Calls for one probe of a spectral density; curvlinops looks for the ends of the spectrum first, once."""
    kept = curvlinops_of(problem.copy(), check_deterministic=False)
    return {
        "PyHessian": lambda: pyhessian_of(problem.copy()).density(iter=steps, n_v=1),
        "hessian-eigenthings": lambda: eigenthings.spectral_density(
            eigenthings_of(problem.copy()), num_runs=1, lanczos_steps=steps, seed=0
        ),
        "curvlinops": lambda: fast_lanczos(kept, steps),
        "curvlinops, ends": lambda: approximate_boundaries(curvlinops_of(problem.copy())),
    }
