"""What is known about a run beside its measurements: model, optimizer, data, cost, versions."""

from __future__ import annotations

import math
import shlex
from typing import Any

from probes.run import Run
from reports.words import counted

_SHOWN = ("lr", "momentum", "betas", "weight_decay", "nesterov")


def summary(run: Run) -> str:
    """What was looked at, in one line."""
    model, optimizer = run.header.get("model") or {}, run.header.get("optimizer") or {}
    parts = []
    if model.get("parameters"):
        kind = f"{model['class']}, " if model.get("class") else ""
        parts.append(f"{kind}{counted(model['parameters'], 'parameter')}")
    if optimizer:
        parts.append(_optimizer(run, optimizer))
    if (size := batch(run)) is not None:
        parts.append(f"batches of {size:,}")
    return " · ".join([*parts, step_text(run), *(["no end recorded"] if has_no_end(run) else [])])


def batch(run: Run) -> int | None:
    """The batch that a probe of gradient noise was told or saw, in examples."""
    for probe in ("noise_stream", "noise_scale", "batch_sharpness"):
        last = run.last(probe, "batch_size")
        if last is not None and last.value is not None:
            return round(last.value)
    return None


def has_no_end(run: Run) -> bool:
    """Whether a Monitor wrote this and did not come to close it: it was killed, or still runs."""
    ended = run.last("monitor", "ended")
    return "id" in run.header and (ended is None or ended.step < run.steps)


def step_text(run: Run) -> str:
    """The step, or that a file does not say."""
    return "step unknown" if run.header.get("file") and run.header.get("step") is None else f"step {run.steps:,}"


def facts(run: Run) -> list[tuple[str, str]]:
    """Name and value of everything that is known."""
    header = run.header
    model, objective, optimizer = (header.get(key) or {} for key in ("model", "objective", "optimizer"))
    known = [("file", str(header["file"]))] if header.get("file") else []
    if model:
        kind = f"{model['class']}, " if model.get("class") else ""
        tensors = counted(len(model.get("shapes", {})), "tensor")
        known.append(("model", f"{kind}{counted(model.get('parameters', 0), 'parameter')}, {tensors}"))
    if optimizer:
        known.append(("optimizer", _optimizer(run, optimizer)))
    if objective:
        terms, batches = counted(int(objective["loss_terms"]), "loss term"), counted(objective["batches"], "batch")
        of = counted(objective["parameters"], "parameter")
        known.append(("measured on", f"{terms} in {batches}, {objective['mode']} mode, {of}"))
    known.append(("last step", step_text(run).removeprefix("step ")))
    if has_no_end(run):
        known.append(("end", "none was recorded: the process was killed, or is still running"))
    if cost := _cost(run):
        known.append(("cost of measuring", cost))
    if budget := header.get("budget"):
        known.append(("budget", f"{budget['seconds']:g} s for measuring, of which {budget['spent']:g} s were spent"))
    if header.get("interrupted"):
        known.append(("end", f"interrupted {header['interrupted']}"))
    if header.get("device"):
        known.append(("device", str(header["device"])))
    if argv := header.get("argv"):
        known.append(("command", shlex.join(argv)))
    if header.get("created"):
        known.append(("measured", str(header["created"]).replace("T", " ")))
    known += [("note", str(note)) for note in header.get("notes", ())]
    if run.torn:
        known.append(("note", "the last record was cut off while it was being written, and left out"))
    if versions := header.get("versions"):
        known.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return known


def _optimizer(run: Run, optimizer: dict[str, Any]) -> str:
    groups = optimizer.get("groups", [])
    # Which record is of which group is not written down: where their rates differ, only the first ones are known.
    common = len({repr(group.get("lr")) for group in groups}) == 1
    texts = [
        ", ".join(
            _setting(key, group[key]) + (_later_rates(run, group[key]) if key == "lr" and common else "")
            for key in _SHOWN
            if key in group and (key == "lr" or group[key])
        )
        for group in groups[:3]
    ]
    more = f" and {counted(len(groups) - 3, 'more group')}" if len(groups) > 3 else ""
    return f"{_named(optimizer)} {'; '.join(texts)}{more}"


def _named(optimizer: dict[str, Any]) -> str:
    """The class, and before it what is around it, with its settings."""
    around = optimizer.get("wrappers") or []
    names = str(optimizer.get("class") or "optimizer").split(" around ", len(around))
    for place, wrapper in enumerate(around):
        settings = ", ".join(_setting(key, value) for key, value in wrapper.items() if key != "class")
        names[place] += f" ({settings})" if settings else ""
    return " around ".join(names)


def _setting(key: str, value: Any) -> str:
    return f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"


def _later_rates(run: Run, first: Any) -> str:
    """What became of the learning rate: the header knows only the first."""
    seen = [run.series("learning_rate", "lr", layer).values for layer in run.layers("learning_rate", "lr")[:1]]
    values = [value for one in seen for value in one.tolist() if math.isfinite(value)]
    if not values or not isinstance(first, int | float):
        return ""
    low, high = min(values), max(values)
    # A rate as float32 is another number than the one in the header.
    if high > first and not math.isclose(high, first, rel_tol=1e-6):
        return f" at first, highest {high:.3g}"
    if low < first and not math.isclose(low, first, rel_tol=1e-6):
        return f" at first, lowest {low:.3g}"
    return ""


def _cost(run: Run) -> str:
    training = run.last("monitor", "training_seconds")
    if training is None or training.value is None:
        return ""
    records = [run.last("monitor", "seconds", probe) for probe in run.layers("monitor", "seconds")]
    spent = sum(record.value for record in records if record is not None and record.value is not None)
    return f"{spent:.1f} s beside {training.value:.1f} s of training"
