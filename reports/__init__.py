"""The reading: findings, figures, HTML, PDF, terminal, JSON, and the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reports.finding import Finding as Finding
    from reports.report import Report as Report

__all__ = ["Finding", "Report"]


def __getattr__(name: str) -> Any:
    # The command line lives in this package, and its --help must not wait for torch.
    if name == "Report":
        from reports.report import Report

        return Report
    if name == "Finding":
        from reports.finding import Finding

        return Finding
    raise AttributeError(f"module 'reports' has no attribute {name!r}")
