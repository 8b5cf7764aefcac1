"""Slow twins of the measures of a trajectory: everything as one long vector, in numpy."""

from __future__ import annotations

import itertools

import numpy
import torch


def vectors(state_dicts, names):
    return numpy.array(
        [numpy.concatenate([state[name].double().numpy().ravel() for name in names]) for state in state_dicts]
    )


def cosine(one, other):
    return float(one @ other / numpy.sqrt((one @ one) * (other @ other)))


def cosines(points):
    steps = numpy.diff(points, axis=0)
    return [cosine(one, other) for one, other in itertools.pairwise(steps)]


def principal(points):
    """Coordinates up to sign, and shares of variance, by a singular value decomposition."""
    left, values, _ = numpy.linalg.svd(points - points.mean(0), full_matrices=False)
    return left[:, :2] * values[:2], values[:2] ** 2 / (values**2).sum()


def drift(first, other):
    one, two = (numpy.linalg.svd(matrix.double().flatten(1).numpy(), compute_uv=False) for matrix in (first, other))
    return float(numpy.linalg.norm(two - one) / numpy.linalg.norm(one))


def line_losses(model, loss, batch, first, last, alphas):
    """The loss at every point with parameters really put into the model."""
    kept, found = {name: tensor.clone() for name, tensor in model.state_dict().items()}, []
    for alpha in alphas:
        model.load_state_dict({**kept, **{name: (1 - alpha) * first[name] + alpha * last[name] for name in first}})
        norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = 1.0
        with torch.no_grad():
            if norms:
                model.train()(batch[0])
            found.append(float(loss(model.eval()(batch[0]), batch[1])))
    model.load_state_dict(kept)
    return found


def best_order(first, last):
    """Of all orders of the hidden units of a network of one hidden layer, the one nearest to another network."""
    width = len(first["0.bias"])

    def distance(order):
        order = list(order)
        parts = [first["0.weight"] - last["0.weight"][order], first["0.bias"] - last["0.bias"][order]]
        parts.append(first["2.weight"] - last["2.weight"][:, order])
        return sum(float(part.square().sum()) for part in parts)

    return min(itertools.permutations(range(width)), key=distance)
