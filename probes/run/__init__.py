"""The Run: a folder that says what was measured, when and how."""

from probes.run.reader import Run as Run
from probes.run.records import Record as Record
