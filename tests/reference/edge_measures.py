"""What the measures around the edge are compared with: small models, and their answers from dense matrices."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diagnostics import Objective
from tests.reference.dense_hessian import dense_hessian


class Quadratic(nn.Module):
    """½ θᵀHθ, plus a linear term, at a point θ."""

    def __init__(self, hessian: Tensor, theta: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(theta.clone())
        self.register_buffer("hessian", hessian)

    def objective(self, offset: float = 0.0) -> Objective:
        def loss(model: Quadratic, scale: Tensor) -> Tensor:
            return offset + scale.mean() * 0.5 * model.theta @ model.hessian @ model.theta

        return Objective.from_loss(self, loss, [torch.ones(1, dtype=self.theta.dtype)])


def random_quadratic(size: int = 6, seed: int = 0, definite: bool = True) -> Quadratic:
    """With a random symmetric matrix, positive definite or indefinite."""
    stream = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, dtype=torch.float64, generator=stream)
    matrix = root @ root.T / size if definite else 0.5 * (root + root.T)
    return Quadratic(matrix, torch.randn(size, dtype=torch.float64, generator=stream))


class Chain(nn.Module):
    """x ↦ Π w_i x: the scalar network."""

    def __init__(self, weights: list[float]) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.weights.prod() * x

    def objective(self) -> Objective:
        """½ (1 − Π w_i)²."""
        one = torch.ones(1, 1, dtype=torch.float64)
        return Objective(self, lambda outputs, targets: 0.5 * (targets - outputs).square().mean(), (one, one))


def network(dtype: torch.dtype = torch.float64, norm: bool = True) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A tanh network with a LayerNorm, and data: three classes, a dozen examples."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(4)
        layers = [nn.Linear(3, 5), *([nn.LayerNorm(5)] if norm else []), nn.Tanh(), nn.Linear(5, 3)]
        model = nn.Sequential(*layers).to(dtype)
        return model, (torch.randn(12, 3).to(dtype), torch.randint(3, (12,)))


def dense_at(model: nn.Module, loss: nn.Module, data: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Gradient (P,) and Hessian (P, P) on the live model."""
    leaves = [parameter for parameter in model.parameters() if parameter.requires_grad]
    parts = torch.autograd.grad(loss(model(data[0]), data[1]), leaves)
    return torch.cat([part.reshape(-1) for part in parts]), dense_hessian(model, lambda: loss(model(data[0]), data[1]))


def sharpness_gradient(objective: Objective, model: nn.Module, loss: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    """∇λmax, (P,), by moving each parameter of the live model and taking the dense Hessian apart again."""
    entries = []
    for tensor in objective.space.tensors:
        flat = tensor.data.view(-1)
        for index in range(flat.numel()):
            before, sides = float(flat[index]), []
            for step in (1e-4, -1e-4):
                flat[index] = before + step
                sides.append(float(torch.linalg.eigvalsh(dense_at(model, loss, data)[1])[-1]))
            flat[index] = before
            entries.append((sides[0] - sides[1]) / 2e-4)
    return torch.tensor(entries, dtype=torch.float64)


def largest_in_ball(hessian: Tensor, gradient: Tensor, rho: float) -> float:
    """max over ‖ε‖ ≤ ρ of g·ε + ½ εᵀHε, by its secular equation (no hard case for a random gradient)."""
    values, vectors = torch.linalg.eigh(hessian)
    coordinates = vectors.T @ gradient
    low, high = float(values[-1]) + 1e-12, float(values[-1]) + 1e6
    for _ in range(200):
        middle = 0.5 * (low + high)
        long = float((coordinates / (middle - values)).norm()) > rho
        low, high = (middle, high) if long else (low, middle)
    step = coordinates / (high - values)
    return float(coordinates @ step + 0.5 * (values * step.square()).sum())
