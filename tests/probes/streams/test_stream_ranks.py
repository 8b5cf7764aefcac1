"""The communication hook: training under it has the bits of DDP without a hook, for two ranks and for three, whose
third is no power of two; what it feeds is what gradients by hand give; ranks that leave do so together.
"""

from __future__ import annotations

import pytest

from tests.probes.streams.on_ranks import on_ranks

MODEL = """
from contextlib import nullcontext
from itertools import product
from tests.probes.bits import differences, trace


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.sometimes, self.last = nn.Linear(5, 7), nn.Linear(7, 7), nn.Linear(7, 2)

    def forward(self, x, everything=True):
        hidden = torch.tanh(self.first(x))
        return self.last(self.sometimes(hidden) if everything else hidden)


def train(make, to_none=True, micro=1, unused=False, clipped=False, steps=4, **settings):
    torch.manual_seed(0)
    model = Net()
    ddp = DistributedDataParallel(model, find_unused_parameters=unused, bucket_cap_mb=1e-4, **settings)
    stream = make(ddp)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=clipped)
    torch.manual_seed(10 + rank)
    losses = []
    for step in range(steps):
        optimizer.zero_grad(set_to_none=to_none)
        for index in range(micro):
            with ddp.no_sync() if index < micro - 1 else nullcontext():
                loss = ddp(torch.randn(4, 5), not unused or step % 2 == 0).square().mean() / micro
                scaler.scale(loss * (float("inf") if clipped and step == 1 else 1.0)).backward()
            losses.append(loss.item())
        if clipped:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
        if stream is not None and step == 2:
            stream.close()
    return trace(model, optimizer, losses)
"""

BITS = """
yes_no = (False, True)
for view, to_none, micro, unused in product(yes_no, yes_no, (1, 3), yes_no):
    clipped = unused == (micro == 1)
    tracker = NoiseTracker(1.0)
    given = dict(gradient_as_bucket_view=view, to_none=to_none, micro=micro, unused=unused, clipped=clipped)
    watched = train(lambda ddp: watch_ranks(ddp, tracker, batch_size=4 * micro), **given)
    assert differences(watched, train(lambda ddp: None, **given)) == [], given
    assert (tracker.steps, tracker.skipped) == ((2, 1) if clipped else (3, 0)), (given, tracker.noise)
if world == 3:
    # The comparison can tell: one product for the whole bucket is not what DDP does with views of it.
    def simple(ddp):
        def hook(state, bucket):
            reducing = distributed.all_reduce(bucket.buffer().mul_(1 / world), async_op=True)
            return reducing.get_future().then(lambda future: future.value()[0])
        ddp.register_comm_hook(None, hook)

    given = dict(gradient_as_bucket_view=True, to_none=False)
    assert "weights and buffers" in differences(train(simple, **given), train(lambda ddp: None, **given))
print("same bits as plain DDP")
"""


NORMS = """
torch.manual_seed(0)
model = Net().double()
ddp = DistributedDataParallel(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
sizes = (3, 9)
tracker, direct = NoiseTracker(1.0), NoiseTracker(1.0)
torch.manual_seed(rank)
with watch_ranks(ddp, tracker, batch_size=lambda: len(x), scaler=lambda: 8.0) as stream:
    for step in range(5):
        x = torch.randn(sizes[rank], 5, dtype=torch.float64)
        parts = torch.autograd.grad(model(x).square().mean(), list(model.parameters()))
        own = torch.cat([part.flatten() for part in parts])
        every = [torch.zeros_like(own) for _ in range(world)]
        distributed.all_gather(every, own)
        mean = sum(every) / world
        # Equal weights: 1/b is the mean of 1/3 and 1/9.
        direct.update([float(one.square().sum()) for one in every], float(mean.square().sum()), 4.5)
        optimizer.zero_grad()
        (8.0 * ddp(x).square().mean()).backward()
        stream.settle()
        assert tracker.steps == step + 1
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
assert stream.off is None and not stream.skipped, stream.note
for got, want in zip(tracker.noise.__dict__.values(), direct.noise.__dict__.values()):
    assert abs(float(got) - float(want)) <= 1e-9 * abs(float(want)) or float(want) != float(want), (got, want)
print("same norms")
"""


LEAVING = """
import gc, weakref

def fails():
    raise ZeroDivisionError("no size on this rank")

plain = train(lambda ddp: None, steps=6)
for size in (fails, None):
    kept = []
    def watch(ddp):
        tracker = NoiseTracker(1.0)
        stream = watch_ranks(ddp, tracker, batch_size=size if size and rank == 1 else 4)
        kept.append(stream)
        # With size None, rank 1 closes after the third step and the others never do.
        return stream if size is None and rank == 1 else None
    assert differences(train(watch, steps=6), plain) == []
    stream = kept[0]
    print(stream.tracker.steps, stream.note)
    stream.close()
    gone = weakref.ref(stream.tracker)
    del stream, kept[:]
    gc.collect()
    assert gone() is None
print("same bits without a rank")
"""


REFUSED = """
def refused(model, message, **settings):
    try:
        watch_ranks(model, **({"tracker": NoiseTracker(), "batch_size": 4} | settings))
    except DiagnosticsError as error:
        assert message in str(error), error
    else:
        raise AssertionError(message)

ddp = DistributedDataParallel(nn.Linear(3, 2))
refused(nn.Linear(3, 2), "model is not DistributedDataParallel")
refused(None, "model is not DistributedDataParallel")
refused(ddp, "tracker is not a NoiseTracker", tracker=None)
refused(ddp, "batch_size is not a number of examples", batch_size=0)
refused(DistributedDataParallel(nn.Embedding(3, 2, sparse=True)), "sparse gradients")
alone = [distributed.new_group([0]), distributed.new_group([1])][rank]
refused(DistributedDataParallel(nn.Linear(3, 2), process_group=alone), "there is one rank")
stream = watch_ranks(ddp, NoiseTracker(), batch_size=4)
refused(ddp, "model has a communication hook already")
builtin = DistributedDataParallel(nn.Linear(3, 2))
builtin._register_builtin_comm_hook(distributed.BuiltinCommHookType.FP16_COMPRESS)
refused(builtin, "model has a communication hook already")
ddp(torch.randn(4, 3)).sum().backward()
with ddp.join():
    ddp(torch.randn(4, 3)).sum().backward()
stream.close()
assert (stream.tracker.steps, stream.tracker.skipped) == (1, 1), stream.note
print("all refused")
"""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[str]]:
    """Of two ranks and of three; starting processes takes longest, so each runs all its programs."""
    return {
        2: on_ranks(MODEL + BITS + NORMS + REFUSED, 2, tmp_path_factory.mktemp("two")),
        3: on_ranks(MODEL + BITS + LEAVING, 3, tmp_path_factory.mktemp("three")),
    }


@pytest.mark.parametrize("world", [2, 3])
def test_training_has_the_bits_of_plain_ddp(outputs: dict[int, list[str]], world: int) -> None:
    assert all("same bits as plain DDP" in output for output in outputs[world])


def test_norms_are_those_of_separate_backward_passes_before_clipping(outputs: dict[int, list[str]]) -> None:
    assert all("same norms" in output for output in outputs[2])


def test_what_cannot_be_watched_is_refused_before_training(outputs: dict[int, list[str]]) -> None:
    assert all("all refused" in output for output in outputs[2])


def test_ranks_that_fail_or_close_take_the_others_with_them_and_training_goes_on(
    outputs: dict[int, list[str]],
) -> None:
    for rank, output in enumerate(outputs[3]):
        assert "same bits without a rank" in output
        failed, closed = [line for line in output.splitlines() if line[:2] in ("0 ", "3 ")]
        assert ("ZeroDivisionError: no size on this rank" if rank == 1 else "another rank has stopped") in failed
        assert closed.startswith("3 ")
        assert ("another rank has stopped measuring" in closed) == (rank != 1)
