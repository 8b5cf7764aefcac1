"""How far larger batches save steps depends on the optimizer: momentum and preconditioning carry further.

The noisy quadratic model with the curvatures 1, 1/2, ..., 1/10000 and noise in proportion to them; each entry has its
own best learning rate. With small batches steps fall as 1/B for all three, and momentum changes nothing but the rate.
Plain descent is the first to stop gaining: what is left for it then is curvature, not noise. Momentum goes on, and
preconditioning by H^½ needs the fewest steps everywhere.

Zhang et al., arXiv 1907.04164. Takes about five seconds.
"""

import itertools
import math

from diagnostics import noisy_quadratic

TARGET = 0.1
SIZES = [1, 4, 16, 64, 256, 1024, 4096, 16384, math.inf]
OPTIMIZERS: dict[str, dict[str, float]] = {
    "descent": {},
    "momentum 0.9": {"momentum": 0.9},
    "H^0.5 preconditioned": {"preconditioning": 0.5},
}

if __name__ == "__main__":
    # Neighbours among the small eigenvalues taken together: 100 entries stand for 10,000.
    edges = sorted({round(10001 ** (k / 100)) for k in range(101)})
    spans = [range(low, high) for low, high in itertools.pairwise(edges)]
    model = noisy_quadratic(
        [sum(1 / i for i in span) / len(span) for span in spans], multiplicities=[len(span) for span in spans]
    )
    steps = {
        name: [found.steps.value for found in model.steps_by_batch_size(TARGET, SIZES, **options)]
        for name, options in OPTIMIZERS.items()
    }
    critical = {name: model.critical_batch_size(TARGET, **options).value for name, options in OPTIMIZERS.items()}

    print(f"steps from loss {model.loss(0, 1.0, 1):.1f} to {TARGET}, {model}")
    print("batch size".ljust(22) + "".join(f"{size:>9g}" for size in SIZES) + "   critical")
    for name, row in steps.items():
        print(name.ljust(22) + "".join(f"{count:>9,.0f}" for count in row) + f"{critical[name]:>11,.0f}")

    plain, momentum, divided = steps.values()
    assert abs(momentum[0] / plain[0] - 1) < 0.05, "with small batches momentum should not matter"
    assert momentum[-1] < 0.1 * plain[-1], "without noise it should"
    assert all(few < many / 2 for few, many in zip(divided, plain, strict=True)), "preconditioning should save steps"
    assert min(critical["momentum 0.9"], critical["H^0.5 preconditioned"]) > 10 * critical["descent"]
