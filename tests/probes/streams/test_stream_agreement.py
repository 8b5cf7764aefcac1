"""One run, measured three ways at once: between two ranks, between the micro-batches of each, and between examples. All
give the noise scale that the whole population of examples has along the run, within their 95 % intervals.

Data are a finite population from which each rank draws with replacement, so the truth is known at every step: it is
the sum of tr Σ over steps by the sum of |G|². Over 20 seeds, 95 % intervals held the truth in 174 of 180 cases.
"""

from __future__ import annotations

from pathlib import Path

from tests.probes.streams.on_ranks import on_ranks

RUN = """
from contextlib import ExitStack, nullcontext
from torch.func import functional_call, grad, vmap
from diagnostics import Objective, per_example_gradient_norms
from tests.probes.bits import differences, trace

POPULATION, MICRO, EXAMPLES, STEPS = 256, 4, 8, 100


def run(seed, watching):
    torch.manual_seed(seed)
    x = torch.randn(POPULATION, 6)
    y = x[:, :1] * x[:, 1:2] + x[:, 2:3] + 0.5 * torch.randn(POPULATION, 1)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 1))
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    trackers = {name: NoiseTracker(1.0) for name in ("ranks", "microbatches", "examples")}
    truth, losses = torch.zeros(2, dtype=torch.float64), []

    def of_example(parameters, one_x, one_y):
        return (functional_call(model, parameters, (one_x[None],)) - one_y).square().mean()

    drawn = torch.Generator().manual_seed(100 * seed + rank)
    with ExitStack() as stack:
        if watching:
            stack.enter_context(watch_ranks(ddp, trackers["ranks"], batch_size=MICRO * EXAMPLES))
            stack.enter_context(watch_microbatches(ddp, optimizer, trackers["microbatches"], batch_size=EXAMPLES))
        for step in range(STEPS):
            chosen = torch.randint(POPULATION, (MICRO, EXAMPLES), generator=drawn)
            if watching:
                parameters = {name: tensor.detach() for name, tensor in model.named_parameters()}
                each = vmap(grad(of_example), in_dims=(None, 0, 0))(parameters, x, y)
                each = torch.cat([part.flatten(1) for part in each.values()], 1).double()
                mean = each.mean(0)
                truth += torch.stack([mean.square().sum(), (each - mean).square().sum(1).mean()])
                batch = x[chosen.flatten()], y[chosen.flatten()]
                found = per_example_gradient_norms(Objective(model, nn.MSELoss(), batch))
                trackers["examples"].update(found.norms.square(), float(found.mean_square), small_size=1)
            optimizer.zero_grad()
            for index, rows in enumerate(chosen):
                with ddp.no_sync() if index < MICRO - 1 else nullcontext():
                    loss = nn.functional.mse_loss(ddp(x[rows]), y[rows]) / MICRO
                    loss.backward()
                losses.append(loss.item())
            optimizer.step()
    return trackers, truth / STEPS, trace(model, optimizer, losses)
"""

CHECK = """
trackers, (gradient_sq, trace_covariance), watched = run(0, True)
assert differences(watched, run(0, False)[2]) == []
intervals = []
for name, tracker in trackers.items():
    assert tracker.steps == STEPS, name
    noise = tracker.noise
    print(name, noise.simple, noise.gradient_sq, noise.trace_covariance)
    simple = trace_covariance / gradient_sq
    for quantity, truth in zip(("simple", "gradient_sq", "trace_covariance"), (simple, gradient_sq, trace_covariance)):
        low, high = getattr(noise, quantity).interval()
        assert low < float(truth) < high, (name, quantity, low, float(truth), high)
    intervals.append(noise.simple.interval())
assert max(low for low, _ in intervals) < min(high for _, high in intervals)
print("one answer")
"""


def test_ranks_micro_batches_and_examples_give_one_answer_and_training_keeps_its_bits(tmp_path: Path) -> None:
    assert all("one answer" in output for output in on_ranks(RUN + CHECK, 2, tmp_path))
