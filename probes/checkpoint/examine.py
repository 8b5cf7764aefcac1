"""Measuring a checkpoint: its tensors always, and with a task whatever a live run would be measured for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from probes.ascent import AscentSharpness
from probes.attention import AttentionHeads
from probes.batch_ladder import BatchLadder
from probes.checkpoint.allowance import Allowance
from probes.checkpoint.examination import PARTS, Examination, Progress
from probes.checkpoint.load import load_checkpoint
from probes.checkpoint.rebuild import named, rebuild
from probes.gradient_alignment import GradientAlignment
from probes.gradient_curvature import GradientCurvature
from probes.gradient_flow import GradientFlow
from probes.landscape import Landscape
from probes.learning_rate import EffectiveLearningRate
from probes.noise_scale import NoiseScale
from probes.opposing import OpposingSignals
from probes.plasticity import Plasticity
from probes.probe import Moment, Probe
from probes.ranks import FeatureRank
from probes.run.reader import Run
from probes.sharpening import Sharpening
from probes.sharpness import Sharpness
from probes.spectrum import Spectrum
from probes.tangent_kernel import TangentKernel
from probes.units import Units

ALONE = 20
"""What decomposing matrices takes beside opening and surveying the file; beside probes, nobody knows."""


def examine(
    path: Path,
    *,
    task: str | None = None,
    text: Path | None = None,
    trust: bool = False,
    allow: Sequence[str] = (),
    only: Collection[str] | None = None,
    device: str | None = None,
    seed: int = 0,
    budget: float | Allowance | None = None,
    keep: bool = False,
    progress: Progress = lambda stage: None,
    part: Callable[[float], None] = lambda share: None,
) -> Run:
    """Open a checkpoint and measure what can be measured; the result is a Run with one step.

    The spectrum, the curvature along steps, and what lies around the edge of stability are measured only when they are
    asked for by name: the spectrum costs twenty times the rest, and a gradient flow as much as training.

    Args:
        path: the file or the folder.
        task: see ``build_task``; without one, and without a text, only the tensors are surveyed.
        text: see ``language_model``; for a folder of Hugging Face, instead of a task.
        trust: see ``load_checkpoint``.
        allow: see ``load_checkpoint``.
        only: probes wanted, by name; None for all.
        device: see ``build_task``.
        seed: of what is drawn at random: by the measures, by the task, and of a text.
        budget: seconds that measuring may take, or an allowance of which some is spent; what they do not reach is
            skipped, with that reason. Opening the file and building the task are not measuring, and are not counted.
        keep: whether an interrupt (Ctrl-C) ends the measuring and keeps what there is, instead of being raised; the
            header then says ``interrupted``.
        progress: told what is being done, before each stage.
        part: told the share of a long stage that is done, 0 to 1.

    Raises:
        DiagnosticsError: the file or the task cannot be used.
    """
    task_name = named(task, text)
    allowance = budget if isinstance(budget, Allowance) else Allowance(budget)
    progress("opening the file")
    checkpoint = load_checkpoint(path, trust=trust, allow=allow)
    found = Examination(checkpoint, task_name, allowance, progress, part)
    try:
        found.tensors()
        if task_name is not None:
            # Before what takes long: a task that does not work should say so at once.
            progress("building the task")
            objective, optimizer, notes = rebuild(checkpoint, task=task, text=text, device=device, seed=seed)
            found.described(objective, optimizer, notes)
        if _matrices(only):
            found.matrices(seed)
        if task_name is not None:
            for probe in _probes(only, seed):
                found.measured(probe, Moment(found.step, objective.model, optimizer, objective, random=seed))
    except KeyboardInterrupt:
        if not keep:
            raise
        found.interrupted(wanted(task_name, only))
    if task_name is None:
        found.without_task(sorted({*(only or ())} - {"weights"}))
    return found.run()


def wanted(task: str | None, only: Collection[str] | None) -> list[str]:
    """The names of what ``examine`` measures beyond the survey, in its order."""
    probes = [probe.name for probe in _probes(only)] if task is not None else []
    return (["weights"] if _matrices(only) else []) + probes


def stages(task: str | None, only: Collection[str] | None) -> dict[str, int]:
    """What ``examine`` will report, and about how long each stage takes beside the others, for a progress bar."""
    told = {"opening the file": 1, "surveying tensors": 1}
    if task is not None:
        told["building the task"] = 1
    if _matrices(only):
        told["decomposing matrices"] = ALONE if task is None else 1
    if task is not None:
        for probe in _probes(only):
            told |= {f"measuring {probe.name.replace('_', ' ')}": 1}
            told |= {f"measuring {part}": 1 for part in PARTS.get(probe.name, {}).values()}
    return told


def _matrices(only: Collection[str] | None) -> bool:
    return only is None or "weights" in only


def _probes(only: Collection[str] | None, seed: int = 0) -> list[Probe]:
    # One measurement, not hundreds: a tenth of the tolerance costs little.
    probes: list[Probe] = [Sharpness(tol=1e-3), EffectiveLearningRate(), Units()]
    if only is None:
        return probes
    # One measurement, in which a flow may be followed to its end, and eigenvectors told apart.
    around: list[Probe] = [Sharpening(tol=1e-3), AscentSharpness(), BatchLadder(), GradientFlow(max_gradients=20_000)]
    noise: list[Probe] = [NoiseScale(draws=16), GradientAlignment(), OpposingSignals()]
    alive: list[Probe] = [AttentionHeads(), FeatureRank(), Plasticity()]
    outside: list[Probe] = [TangentKernel(), Landscape(seed=seed)]
    named: list[Probe] = [GradientCurvature(), Spectrum(steps=64, seed=seed), *noise, *around, *alive, *outside]
    return [probe for probe in (*probes, *named) if probe.name in only]
