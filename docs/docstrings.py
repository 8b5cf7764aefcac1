"""For the reference: docstrings here say ``Example:``, where griffe knows a section of examples as ``Examples:``."""

from typing import Any

import griffe


class Examples(griffe.Extension):
    """Has ``Example:`` read as a section, so that its code is shown as code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every object that was found."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
