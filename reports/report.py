"""The Report: findings and figures about a run or a checkpoint, to print or to save."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from diagnostics import DiagnosticsError
from probes.run import Run
from reports.compose import compose
from reports.document import Document
from reports.finding import Finding
from reports.render.junit import to_junit
from reports.render.markdown import to_markdown


class Report:
    """What a run or a checkpoint says, verdict first.

    Example:
        >>> from probes import Record
        >>> run = Run({}, [Record(step=0, time=0.0, probe="sharpness", name="ratio", value=0.4, error=0.01)])
        >>> report = Report.from_run(run)
        >>> report.findings[0].level, report.findings[0].id
        ('ok', 'sharpness/regime')
    """

    def __init__(self, document: Document, run: Run, *others: Run) -> None:
        self.document = document
        self.run = run
        self.runs = (run, *others)

    @classmethod
    def from_run(cls, run: str | Path | Run, *, only: Collection[str] | None = None) -> Report:
        """A report on a run folder, also one still being written, or on a Run in memory.

        Args:
            run: the folder, or a Run.
            only: chapters wanted, by probe name (``"sharpness"``, ``"learning_rate"``, ``"units"``); None for all.

        Raises:
            DiagnosticsError: no run there.
        """
        opened = run if isinstance(run, Run) else Run.open(run)
        title = str(opened.path) if opened.path is not None else "run"
        return cls(compose(opened, title, only), opened)

    @classmethod
    def from_runs(cls, *runs: str | Path | Run, only: Collection[str] | None = None) -> Report:
        """A comparison of 2 to 12 runs: what was set differently, and what came of it at equal steps and at equal loss.

        The others are held against the first. A difference within twice its error is unclear.

        Args:
            runs: folders, also some still being written, or Runs in memory.
            only: chapters wanted, by probe name; None for all. The loss is always compared.

        Raises:
            DiagnosticsError: too few or too many, or no run there.

        Source: Optimizers Qualitatively Alter Solutions And We Should Leverage This, arXiv 2507.12224 (equal loss).

        Example:
            >>> from probes import Record
            >>> def run(start: float) -> Run:
            ...     losses = [start * 0.9**step for step in range(40)]
            ...     return Run({}, [Record(step, 0.0, "loop", "loss", value=loss) for step, loss in enumerate(losses)])
            >>> report = Report.from_runs(run(1.0), run(2.0))
            >>> report.document.diagnosis
            'run 2 is worse off in logged loss (0.09175 against 0.04588).'
        """
        from reports.comparison.compose import compose_runs
        from reports.comparison.contender import contenders

        found = contenders(runs)
        return cls(compose_runs(found, only), *(one.run for one in found))

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        task: str | None = None,
        text: str | Path | None = None,
        trust: bool = False,
        allow: Sequence[str] = (),
        only: Collection[str] | None = None,
    ) -> Report:
        """A report on a checkpoint.

        Args:
            path: the file, or the folder.
            task: ``"file.py"``, ``"file.py:build"`` or ``"package.module:build"``: rebuilds the Objective from the
                checkpoint, and so allows curvature, rates and units. Its code is run.
            text: instead of a task, for a language model in a folder of Hugging Face: its loss on this file of text.
                Needs transformers; nothing in the folder is run.
            trust: run the code that a pickle asks for. Only for files you would run as a program.
            allow: further global names that a pickle may import.
            only: chapters wanted.

        Raises:
            DiagnosticsError: the file or the task cannot be used.
        """
        from probes.checkpoint.examine import examine

        run = examine(Path(path), task=task, text=_path(text), trust=trust, allow=allow, only=only)
        return cls(compose(run, str(path), only), run)

    @classmethod
    def from_checkpoints(
        cls,
        paths: Sequence[str | Path],
        *,
        task: str | None = None,
        text: str | Path | None = None,
        trust: bool = False,
        allow: Sequence[str] = (),
        only: Collection[str] | None = None,
    ) -> Report:
        """A report on several checkpoints of one run: the path between them, and the last as by itself.

        They are ordered by the step they hold, else by the number in their names, else by the times of the files; the
        report says by which.

        Args:
            paths: two or more files or folders, in any order.
            task: as for ``from_checkpoint``; with one, also the loss of each, and along the line from the first to
                the last.
            text: as for ``from_checkpoint``.
            trust: as for ``from_checkpoint``.
            allow: as for ``from_checkpoint``.
            only: chapters wanted; the path is ``"trajectory"``.

        Raises:
            DiagnosticsError: fewer than two, one that cannot be used, or some that are not of one model.
        """
        from probes.checkpoint.trajectory import follow

        run = follow([Path(path) for path in paths], task=task, text=_path(text), trust=trust, allow=allow, only=only)
        return cls(compose(run, f"{len(paths)} checkpoints, last {run.header['last']}", only), run)

    @classmethod
    def at_matched_loss(
        cls,
        runs: Mapping[str, Sequence[str | Path]],
        *,
        task: str | None = None,
        text: str | Path | None = None,
        trust: bool = False,
        allow: Sequence[str] = (),
        only: Collection[str] | None = None,
    ) -> Report:
        """A comparison of checkpoints of several runs: one of each, where their losses are equal.

        Every checkpoint's loss is taken. Of those within 5 % of each other the ones with the lowest loss are measured
        and held against the first run's; where none are so near, the nearest, and the report says so.

        Args:
            runs: by its name, the checkpoints of each run, in any order.
            task: as for ``from_checkpoint``; it, or a text, is needed, and must give the same data to all.
            text: as for ``from_checkpoint``.
            trust: as for ``from_checkpoint``.
            allow: as for ``from_checkpoint``.
            only: chapters wanted; None for weights, sharpness, rates, units, the noise scale and ranks.

        Raises:
            DiagnosticsError: fewer than two runs, no loss, or a checkpoint that cannot be used.

        Source: Optimizers Qualitatively Alter Solutions And We Should Leverage This, arXiv 2507.12224.
        """
        from probes.checkpoint.matched import examine_matched
        from reports.comparison.checkpoints import compose_checkpoints

        branches = examine_matched(
            {name: [Path(path) for path in paths] for name, paths in runs.items()},
            task=task,
            text=_path(text),
            trust=trust,
            allow=allow,
            only=only,
        )
        return cls(compose_checkpoints(branches, only), *(one.run for one in branches))

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The verdicts, worst first."""
        return self.document.findings

    def save(self, path: str | Path, ending: str | None = None) -> Path:
        """Write the report, all or nothing.

        Args:
            path: the file; its ending decides the format.
            ending: ``".html"``, ``".pdf"``, ``".json"``, ``".md"`` (Markdown) or ``".xml"`` (JUnit) where the file's
                own ending should not decide.

        Raises:
            DiagnosticsError: another ending, or a place that cannot be written.
        """
        target = Path(path)
        ending = ending or target.suffix
        if ending != ".pdf" and ending not in _TEXTS:
            raise DiagnosticsError(
                "the report's format is told by the file's ending",
                given=target.name,
                expected=".html, .pdf or .json; .md for Markdown, .xml for JUnit",
            )
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if ending == ".pdf":
                from reports.render.pdf import to_pdf

                to_pdf(self.document, target)
            else:
                _replace(target, self.text(ending))
        except OSError as problem:
            raise DiagnosticsError(f"{target} cannot be written", given=str(problem)) from problem
        return target

    def text(self, ending: str) -> str:
        """The report as text: what ``save`` writes for an ending other than ``".pdf"``."""
        return _TEXTS[ending](self.document)

    def __str__(self) -> str:
        from reports.render.terminal import to_terminal

        return to_terminal(self.document).rstrip("\n")


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)


def _html(document: Document) -> str:
    from reports.render.html import to_html

    return to_html(document)


def _json(document: Document) -> str:
    from reports.render.json import to_json

    return to_json(document) + "\n"


_TEXTS: dict[str, Callable[[Document], str]] = {".html": _html, ".json": _json, ".md": to_markdown, ".xml": to_junit}


def _replace(target: Path, text: str) -> None:
    """Write a whole file or nothing."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        # A file name that is not UTF-8 comes with lone surrogates.
        temporary.write_text(text, encoding="utf-8", errors="replace")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
