"""The one exception a caller of this toolkit has to know."""

from __future__ import annotations


class DiagnosticsError(ValueError):
    """Raised for input a measure cannot work with.

    The message names the argument, says what it was, what was expected, and what to try.
    """

    def __init__(self, what: str, *, given: str = "", expected: str = "", attempt: str = "") -> None:
        parts = [what]
        if given:
            parts.append(f"given: {given}")
        if expected:
            parts.append(f"expected: {expected}")
        if attempt:
            parts.append(f"try: {attempt}")
        super().__init__("; ".join(parts))
