"""The sharpness that gradient flow from here would end at.

Gradient descent at the edge of stability oscillates, and its sharpness with it. What falls steadily beneath is the
sharpness at the end of the gradient flow θ' = −∇L from the present parameters: for scalar networks it was proved that
it never rises along gradient descent, and fully connected ones were seen to do the same. Below 2/η the flow and the
descent agree, and the run has left the edge for good.

The flow is integrated by an explicit Runge-Kutta pair with error control (RK23 of SciPy), on copies, in float64. It is
stiff, and near its end error control alone lets an explicit method hover about the minimum at the size of its
tolerance. So a step is also kept below 1.2/λmax, half of where the method becomes unstable, with λmax measured anew on
the way. That makes it three gradients for about every step that gradient descent at the edge would take.

It is done twice, with ten times the tolerance and stopped ten times earlier at first, and what differs between the two
ends is the error: of the integration, and of not having gone to the very end. Where the loss has no minimum to flow to,
as with cross-entropy on separable data, that difference is as large as the value.

Source: Kreisler et al., arXiv 2305.13064.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from scipy.integrate import RK23
from torch import Tensor

from diagnostics.arguments import real_number, require_objective, whole_number
from diagnostics.curvature.eigen.eigenpairs import top_eigenpairs
from diagnostics.curvature.operators import Hessian
from diagnostics.curvature.products.ladder import Route
from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate
from diagnostics.objective import Objective
from diagnostics.stability.directional import moved

COARSER = 10.0
"""By how much the first integration is coarser, and ends earlier, than the one that counts."""

STABLE = 1.2
"""Steps stay below so much of 1/λmax. At 2.5 the method becomes unstable, and curvature may rise before it is measured
again.
"""

REFRESHED = 20
"""Steps after which λmax is measured anew: 60 gradients, against some ten for a warm start."""

STEP_COST = 30
"""The most gradients a single step is allowed for: three, and rejected attempts."""


class HessianAt(Hessian):
    """The Hessian at other parameters than the model's own.

    Args:
        objective: what to differentiate twice.
        values: where, one tensor per selected parameter.

    Example:
        >>> model, data = torch.nn.Linear(1, 1, bias=False), (torch.ones(4, 1), torch.zeros(4, 1))
        >>> objective = Objective(model, lambda output, target: (output - target).pow(4).mean(), data)
        >>> HessianAt(objective, [torch.tensor([[2.0]])]) @ torch.ones(1)  # 12 w²
        tensor([48.])
    """

    def __init__(self, objective: Objective, values: Sequence[Tensor]) -> None:
        self._there = tuple(values)
        super().__init__(objective)

    def _choose_route(self) -> Route:
        self._values = self._there
        return super()._choose_route()


@dataclass(frozen=True, repr=False)
class GradientFlowSharpness:
    """Sharpness at the end of gradient flow.

    Attributes:
        sharpness: λmax of the Hessian there; its error is infinite where the flow was not followed to its end.
        converged: whether the gradient norm fell by the factor asked for.
        start: λmax at the present parameters.
        loss: L at the end.
        fall: gradient norm at the end over that at the start.
        time: flow time, in units of learning rate × steps.
        distance: ‖θ_end − θ‖.
        gradients: gradients taken.
    """

    sharpness: Estimate
    converged: bool
    start: Estimate
    loss: float
    fall: float
    time: float
    distance: float
    gradients: int

    def __str__(self) -> str:
        text = f"sharpness {self.sharpness} at the end of gradient flow, {self.start} now"
        return text if self.converged else f"{text} ({self.sharpness.how})"

    def __repr__(self) -> str:
        return f"GradientFlowSharpness({self})"


def gradient_flow_sharpness(
    objective: Objective,
    *,
    fall: float = 1e-3,
    rtol: float = 1e-3,
    tol: float = 1e-3,
    max_gradients: int = 20_000,
    seed: int = 0,
) -> GradientFlowSharpness:
    """λmax where gradient flow from the present parameters ends. The model is not moved.

    Takes thousands of gradients, about as many as the training that is left: for small models, on few batches. Some ten
    vectors of P float64 numbers are held in the host's memory.

    Args:
        objective: the loss that flows, and whose curvature counts.
        fall: stop when ‖∇L‖ is below this times what it is now.
        rtol: relative tolerance of one integration step.
        tol: relative residual of the eigenvalues.
        max_gradients: give up after about so many gradients, both integrations together.
        seed: of the random start of the eigenvalue search.

    Raises:
        DiagnosticsError: an argument out of range; a loss or gradient that is not finite at the present parameters.

    Source: arXiv 2305.13064.

    Example:
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(1, 1, bias=False) for _ in range(2))).double()
        >>> for layer, weight in zip(model, (3.0, 0.5)):
        ...     _ = torch.nn.init.constant_(layer.weight, weight)
        >>> ones = torch.ones(1, 1).double()
        >>> objective = Objective(model, lambda output, target: 0.5 * (output - target).square().mean(), (ones, ones))
        >>> end = gradient_flow_sharpness(objective)  # 1/a + 1/b with ab = 1 and a − b = 9 − ¼
        >>> round(float(end.sharpness), 2), end.converged
        (8.98, True)
    """
    require_objective(objective)
    fall, rtol = (
        real_number(f"{name} is out of range", given, "between 0 and 0.1", lambda value: 0 < value < 0.1)
        for name, given in (("fall", fall), ("rtol", rtol))
    )
    least = 2 * STEP_COST
    max_gradients = whole_number(
        "max_gradients is too small", max_gradients, f"a whole number, at least {least}", least
    )
    flow = _Flow(objective, max_gradients)
    start = top_eigenpairs(Hessian(objective), tol=tol, seed=seed)
    now, flow.restart = start.estimate(), start.restart
    if flow.initial == 0.0:
        how = f"the gradient is zero: the flow stays where it is; {now.how}; {objective.description}"
        here = Estimate(now.value, now.error, "residual", how)
        return GradientFlowSharpness(here, start.converged, now, flow.loss, 1.0, 0.0, 0.0, flow.gradients)
    early = flow.follow(COARSER * fall, COARSER * rtol, max_gradients // 2)
    early_value = float("nan") if early.problem else flow.sharpness(early.theta, tol, seed).value
    end = flow.follow(fall, rtol, max_gradients) if not early.problem else early
    found = flow.sharpness(end.theta, tol, seed)
    how = (
        f"RK23, {flow.gradients} gradients, {flow.products} products; at the end: {found.how}; {objective.description}"
    )
    if end.problem:
        how = f"NOT CONVERGED: {end.problem}; {how}"
    error = math.inf if end.problem else math.hypot(found.error, found.value - early_value)
    loss, gradient = objective.loss_and_gradient(moved(objective, end.theta, torch.zeros_like(end.theta)))
    return GradientFlowSharpness(
        sharpness=Estimate(found.value, error, "residual", how),
        converged=not end.problem,
        start=now,
        loss=loss,
        fall=float(torch.linalg.vector_norm(gradient.double())) / flow.initial,
        time=end.time,
        distance=float(torch.linalg.vector_norm(end.theta - flow.theta)),
        gradients=flow.gradients,
    )


@dataclass(frozen=True)
class _End:
    """Where an integration stopped, and what kept it from going on."""

    theta: Tensor
    time: float
    problem: str


class _Flow:
    """θ' = −∇L(θ) from the present parameters, in float64 on the host, with its gradients counted."""

    def __init__(self, objective: Objective, most: int) -> None:
        self.objective = objective
        with torch.inference_mode(False):
            self.theta = objective.space.flatten(objective.space.values()).double()
        self.gradients = self.products = 0
        self.restart: Tensor | None = None
        self.loss, gradient = objective.loss_and_gradient(objective.space.values())
        self.initial = float(torch.linalg.vector_norm(gradient.double()))
        if not (math.isfinite(self.loss) and math.isfinite(self.initial)):
            raise DiagnosticsError(
                "the loss or its gradient is not finite",
                given=f"loss {self.loss:g}, gradient norm {self.initial:g}",
                expected="a point to flow from",
            )

    def velocity(self, _: float, point: numpy.ndarray) -> numpy.ndarray:
        """−∇L at a point (P,)."""
        self.gradients += 1
        _, gradient = self.objective.loss_and_gradient(self._values(torch.from_numpy(point)))
        velocity: numpy.ndarray = gradient.neg().double().cpu().numpy()
        return velocity

    def follow(self, fall: float, rtol: float, most: int) -> _End:
        """Integrate until the gradient norm has fallen by a factor, or ``most`` gradients have been taken in all."""
        # An absolute tolerance for what is zero, in units of a typical parameter.
        typical = float(torch.linalg.vector_norm(self.theta)) / math.sqrt(len(self.theta)) or 1.0
        # A trial step may leave the range of the model: its error is then not a number, and the step is shortened.
        with numpy.errstate(all="ignore"):
            solver = RK23(
                self.velocity, 0.0, self.theta.cpu().numpy().copy(), math.inf, rtol=rtol, atol=rtol * 1e-2 * typical
            )
            for count in itertools.count():
                if count % REFRESHED == 0:
                    curvature = self.sharpness(torch.from_numpy(solver.y), 0.1, count).value
                    solver.max_step = STABLE / curvature if curvature > 0 else math.inf
                speed = float(numpy.linalg.norm(solver.f))
                if speed <= fall * self.initial:
                    return self._end(solver, "")
                if self.gradients + STEP_COST > most:
                    return self._end(
                        solver,
                        f"after {self.gradients} gradients ‖∇L‖ is still {speed / self.initial:.2g} of what it was, "
                        f"{fall:.2g} was asked for",
                    )
                message = solver.step()
                if solver.status == "failed":
                    break
        return self._end(solver, f"the integration failed: {message}")

    def sharpness(self, theta: Tensor, tol: float, seed: int) -> Estimate:
        """λmax at another point."""
        pairs = top_eigenpairs(HessianAt(self.objective, self._values(theta)), tol=tol, start=self.restart, seed=seed)
        self.restart = pairs.restart
        self.products += pairs.matvecs
        return pairs.estimate()

    def _end(self, solver: RK23, problem: str) -> _End:
        with torch.inference_mode(False):
            return _End(torch.from_numpy(solver.y.copy()).to(self.theta.device), float(solver.t), problem)

    def _values(self, point: Tensor) -> tuple[Tensor, ...]:
        there = point.to(self.objective.space.device)
        return moved(self.objective, there, torch.zeros_like(there))
