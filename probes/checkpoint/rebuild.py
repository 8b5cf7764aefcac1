"""From a checkpoint to the function it was trained on: by the user's task, or by a text for a language model."""

from __future__ import annotations

from pathlib import Path

from torch.optim import Optimizer

from diagnostics import DiagnosticsError, Objective
from diagnostics.quiet import random_states
from probes.checkpoint.contents import Checkpoint
from probes.checkpoint.streamed import whole
from probes.checkpoint.task import build_task


def rebuild(
    checkpoint: Checkpoint,
    *,
    task: str | None = None,
    text: Path | None = None,
    device: str | None = None,
    seed: int = 0,
) -> tuple[Objective, Optimizer | None, tuple[str, ...]]:
    """Build what the checkpoint is measured with.

    Args:
        checkpoint: the opened file or folder.
        task: see ``build_task``.
        text: see ``language_model``; instead of a task.
        device: where the model, or what the task makes, is put.
        seed: of what is drawn at random: a task draws the same again, and nobody else's numbers are moved.

    Returns:
        the Objective, the optimizer if there is one, and notes.

    Raises:
        DiagnosticsError: the task or the text cannot be used.
    """
    with random_states(seed):
        if text is not None:
            from probes.checkpoint.language_model import language_model

            objective, notes = language_model(checkpoint, text, device=device, seed=seed)
            return objective, None, notes
        assert task is not None
        return *build_task(task, whole(checkpoint.raw), device), ()


def named(task: str | None, text: Path | None) -> str | None:
    """What the function is rebuilt by, in words; None where nothing was given.

    Raises:
        DiagnosticsError: both were given.

    >>> named(None, Path("corpus.txt"))
    'the text corpus.txt'
    """
    if task is not None and text is not None:
        raise DiagnosticsError(
            "a task and a text were both given", given=f"{task} and {text}", expected="one: each makes the objective"
        )
    return task if text is None else f"the text {text}"
