"""The curvature that a sharpness-aware step feels: its gradient is taken at θ + R g, so H acts as H + H R H.

Source: Foret et al., arXiv 2010.01412; Long and Bartlett, arXiv 2309.12488.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from diagnostics.curvature.operator import Operator

T = TypeVar("T")


class AscentCurvature(Operator):
    """H + H R H for a diagonal R, at two products each.

    Args:
        operator: H.
        ascent: the diagonal of R, shape (P,): ρ/‖g‖ for SAM.
    """

    def __init__(self, operator: Operator, ascent: Tensor) -> None:
        super().__init__(operator.shape[0], operator.dtype, operator.device)
        self.operator = operator
        self.ascent = ascent.to(self.device, self.dtype)

    @property
    def route(self) -> str:
        """How products are taken."""
        return self.operator.route

    @property
    def product_error(self) -> float:
        """Relative error of a product: two follow on each other."""
        return 2 * self.operator.product_error

    def steadily(self, action: Callable[[], T]) -> T:
        """Run an action that takes many products."""
        return self.operator.steadily(action)

    def expect(self, products: int) -> None:
        """Be told that so many products are coming."""
        self.operator.expect(2 * products)

    def blame(self, vector: Tensor) -> str:
        """Where a product with ``vector`` stops being finite."""
        return self.operator.blame(vector)

    def _products(self, block: Tensor) -> Tensor:
        first = self.operator.multiply(block)
        return first + self.operator.multiply(self.ascent[:, None] * first)
