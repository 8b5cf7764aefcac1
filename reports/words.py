"""Small words: counting things in English."""

from __future__ import annotations


def counted(number: int, singular: str) -> str:
    """A number with its noun.

    Example:
        >>> counted(1, "tensor"), counted(3, "matrix"), counted(2, "batch"), counted(0, "non-linearity")
        ('1 tensor', '3 matrices', '2 batches', '0 non-linearities')
    """
    if number == 1:
        return f"1 {singular}"
    if singular.endswith("ix"):
        return f"{number:,} {singular[:-2]}ices"
    if singular.endswith("ity"):
        return f"{number:,} {singular[:-1]}ies"
    return f"{number:,} {singular}{'es' if singular.endswith('ch') else 's'}"
