"""A text for a language model: a fixed number of sequences of tokens, spread over the file.

The file is thought of as equal parts, and one sequence is drawn from each: so the whole text is represented, whatever
its length. Of a file too large to be turned into tokens at once, equally many passages are read, drawn the same way.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diagnostics import DiagnosticsError
from probes.checkpoint.errors import printable

SEQUENCES = 16
"""As many are measured on. A second-order measure passes over them some hundred times."""

PASSAGE = 1 << 16
"""Bytes of a passage; a file of up to ``SEQUENCES`` of them is read whole."""


@dataclass(frozen=True)
class Passages:
    """What was read of a text.

    Attributes:
        parts: the whole text, or passages of it in their order.
        size: bytes of the file.
    """

    parts: tuple[str, ...]
    size: int


@dataclass(frozen=True)
class Sequences:
    """Sequences of tokens, all of one length.

    Attributes:
        tokens: (sequences, length).
        of: how many there were to draw from.
    """

    tokens: Tensor
    of: int


def read_passages(path: Path, seed: int = 0) -> Passages:
    """Read a text, or passages spread over one that is long.

    Args:
        path: a file in UTF-8.
        seed: of which passages.

    Raises:
        DiagnosticsError: it cannot be read, is empty, or is no text.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "text.txt"
    ...     _ = path.write_text("to be or not to be", encoding="utf-8")
    ...     read_passages(path).parts
    ('to be or not to be',)
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if size <= SEQUENCES * PASSAGE:
                parts = [_text(path, file.read())]
            else:
                parts = []
                for number in spread(size // PASSAGE, SEQUENCES, seed):
                    file.seek(number * PASSAGE)
                    parts.append(_passage(path, file.read(PASSAGE)))
    except OSError as problem:
        raise DiagnosticsError(
            f"the text {str(path)!r} cannot be read", given=str(problem.strerror), expected="a file of text in UTF-8"
        ) from problem
    if not any(part.strip() for part in parts):
        raise DiagnosticsError(f"the text {str(path)!r} is empty", given=f"{size:,} bytes", expected="some text")
    return Passages(tuple(parts), size)


def cut(passages: Passages, encode: Callable[[str], Sequence[int]], length: int, seed: int = 0) -> Sequences:
    """Cut passages into sequences of one length, and draw ``SEQUENCES`` of them, or take all where there are fewer.

    What is left at the end of a passage is left out.

    Args:
        passages: the text.
        encode: turns text into tokens.
        length: tokens in a sequence.
        seed: of which sequences.

    Raises:
        DiagnosticsError: there is not one whole sequence.

    >>> cut(Passages(("abcdefg",), 7), lambda text: [ord(letter) for letter in text], 3).tokens
    tensor([[ 97,  98,  99],
            [100, 101, 102]])
    """
    lists = [list(encode(part)) for part in passages.parts]
    whole = [ids[start : start + length] for ids in lists for start in range(0, len(ids) - length + 1, length)]
    if not whole:
        raise DiagnosticsError(
            "the text is shorter than one sequence",
            given=f"{max(map(len, lists)):,} tokens",
            expected=f"{length} or more; {SEQUENCES * length:,} for all {SEQUENCES} sequences",
            attempt="a longer text, of the kind that the model is for",
        )
    chosen = spread(len(whole), min(SEQUENCES, len(whole)), seed)
    return Sequences(torch.tensor([whole[number] for number in chosen]), len(whole))


def spread(total: int, count: int, seed: int = 0) -> list[int]:
    """Draw one number from each of ``count`` equal parts of 0 ... total - 1.

    >>> spread(4, 4), len(spread(1000, 16))
    ([0, 1, 2, 3], 16)
    """
    generator = torch.Generator().manual_seed(seed)
    edges = [part * total // count for part in range(count + 1)]
    shares = torch.rand(count, generator=generator, dtype=torch.float64).tolist()
    return [low + int(share * (high - low)) for low, high, share in zip(edges, edges[1:], shares, strict=False)]


def _passage(path: Path, data: bytes) -> str:
    """A passage from the middle of a file: what it cuts through at either end is left out."""
    start = next((place for place in range(min(4, len(data))) if data[place] & 0xC0 != 0x80), 0)
    text = _text(path, data[start:], final=False)
    return text[text.find(" ") + 1 :]


def _text(path: Path, data: bytes, final: bool = True) -> str:
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(data, final)
    except UnicodeDecodeError as problem:
        reason = f"byte {data[problem.start]:#04x}, which UTF-8 does not have there"
    else:
        if "\0" not in text:
            return text
        reason = "a byte that is zero"
    raise DiagnosticsError(
        f"{printable(path.name)} is no text in UTF-8",
        given=reason,
        expected="a file of plain text, such as the model was trained on",
        attempt="of a text in another encoding: iconv -f UTF-16 -t UTF-8",
    )
