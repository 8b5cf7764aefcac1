"""Slow twin of neural collapse: covariances written out, one pair and one example at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy


@dataclass(frozen=True)
class Collapse:
    """The four signs."""

    variability: float
    norm_variation: float
    angle_deviation: float
    self_duality: float
    mismatch: float


def collapse_of(h: numpy.ndarray, labels: numpy.ndarray, w: numpy.ndarray, b: numpy.ndarray) -> Collapse:
    """From features (N, d), labels (N,) that are rows of w (C, d), and b (C,)."""
    classes = sorted(set(labels.tolist()))
    count = len(classes)
    means = {c: numpy.mean([x for x, label in zip(h, labels, strict=True) if label == c], axis=0) for c in classes}
    centre = numpy.mean(list(means.values()), axis=0)
    within = []
    for c in classes:
        own = [x for x, label in zip(h, labels, strict=True) if label == c]
        if len(own) > 1:
            within.append(numpy.mean([numpy.outer(x - means[c], x - means[c]) for x in own], axis=0))
    between = numpy.mean([numpy.outer(means[c] - centre, means[c] - centre) for c in classes], axis=0)
    norms = [float(numpy.linalg.norm(means[c] - centre)) for c in classes]
    deviations = []
    for i, c in enumerate(classes):
        for j, other in enumerate(classes):
            if i < j:
                cosine = (means[c] - centre) @ (means[other] - centre) / (norms[i] * norms[j])
                deviations.append(abs(float(cosine) + 1 / (count - 1)))
    m = numpy.array([means[c] - centre for c in classes])
    rows = w[classes]
    wrong = 0
    for x in h:
        chosen = int(numpy.argmax(w @ x + b))
        nearest = min(classes, key=lambda c: float(numpy.sum((x - means[c]) ** 2)))
        wrong += chosen != nearest
    return Collapse(
        variability=float(numpy.trace(numpy.mean(within, axis=0) @ numpy.linalg.pinv(between, rcond=1e-10))) / count,
        norm_variation=float(numpy.std(norms) / numpy.mean(norms)),
        angle_deviation=float(numpy.mean(deviations)),
        self_duality=float(numpy.sum((rows / numpy.linalg.norm(rows) - m / numpy.linalg.norm(m)) ** 2)),
        mismatch=wrong / len(h),
    )
