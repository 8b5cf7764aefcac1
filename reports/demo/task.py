"""The demonstration's task: how to rebuild its objective and its optimizer from a checkpoint.

``diagnose demo`` trains with these functions, and puts a copy of this file beside the checkpoint that it saves;
``diagnose checkpoint.pt --task task.py`` then calls ``build``. A task file of your own needs just that one function.
"""

from typing import Any

import torch
from torch import Tensor, nn

from diagnostics import Objective
from reports.demo.digits import digits

LEARNING_RATE = 0.5
EXAMPLES = 1000


def network() -> nn.Module:
    """Two hidden layers of 100 tanh units."""
    return nn.Sequential(nn.Linear(64, 100), nn.Tanh(), nn.Linear(100, 100), nn.Tanh(), nn.Linear(100, 10))


def data() -> tuple[Tensor, Tensor]:
    """The first thousand digits, and their classes one-hot."""
    images, labels = digits(EXAMPLES)
    return images, nn.functional.one_hot(labels, 10).to(images.dtype)


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half the squared error, summed over classes, averaged over examples."""
    return 0.5 * (outputs - targets).square().sum(dim=1).mean()


def build(checkpoint: dict[str, Any]) -> tuple[Objective, torch.optim.Optimizer]:
    """The objective and the optimizer as they were when the checkpoint was saved."""
    model = network()
    model.load_state_dict(checkpoint["model"])
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    optimizer.load_state_dict(checkpoint["optimizer"])
    return Objective(model, loss, data()), optimizer
