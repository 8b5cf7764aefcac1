"""The colours of every figure.

Figures are drawn once, in the light palette. The page turns each of these hex values into a CSS variable, so that one
drawing serves light and dark; the PDF keeps them as they are. SERIES is the Okabe-Ito set, which colour-blind readers
can tell apart, in an order whose neighbours differ in lightness too.
"""

from __future__ import annotations

INK = "#1c2330"
MUTED = "#5d6675"
GRID = "#dfe3ea"
PAPER = "#fefefe"
EDGE = "#c2410b"
"""Thresholds: the line a value is held against."""
BAND = "#cfe0f5"
"""Error bands around the first series."""
SERIES = ("#0b62a4", "#d97a06", "#128a6b", "#a8508f", "#3f9bd1", "#857a10")

LEVEL = {"fail": "#b3261f", "warn": "#9a5b00", "unmeasured": "#5b6472", "ok": "#1b7a43"}
