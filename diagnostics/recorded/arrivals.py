"""Gradients at the outputs of uses, as they come during the backward pass.

Whoever wants no more of a parameter than what its uses add to the gradients of examples can have that as soon as the
last gradient is there. Inputs and gradients are then let go of, and no more memory is held at once than the backward
pass holds itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from diagnostics.recorded.recording import Recording


class Arrivals:
    """Keeps gradients as they come, and hands on the parameters that are complete.

    Args:
        recording: all uses; those that are done with lose their arguments.
        gradients: at the output of each, to be filled.
        asked: the leaves that are differentiated for.
        see: takes the name of a parameter whose gradients are all there; None to keep them all.

    Attributes:
        ends: uses that the backward pass has no other reason to reach: their gradients are to be asked for.
    """

    def __init__(
        self,
        recording: Recording,
        gradients: list[Tensor | None],
        asked: Iterable[Tensor],
        see: Callable[[str], None] | None,
    ) -> None:
        self.recording, self.gradients, self.see = recording, gradients, see
        self.missing = {name: len(places) for name, places in recording.places.items()}
        # What is derived from parameters is differentiated once more, for which all is kept.
        self.kept = frozenset[str]().union(*(names for value, names in recording.roots.items() if names != {value}))
        self.ends = _ends([use.edge.node for use in recording.uses], asked)

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Catch gradients while a backward pass runs inside."""
        handles = [
            use.edge.node.register_prehook(partial(self._arrive, place))
            for place, use in enumerate(self.recording.uses)
            if place not in self.ends
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _arrive(self, place: int, gradients: Sequence[Tensor | None]) -> None:
        gradient = gradients[self.recording.uses[place].edge.output_nr]
        if gradient is None:
            return
        self.gradients[place] = gradient
        if self.see is None:
            return
        complete = []
        for name in self.recording.uses[place].roots:
            self.missing[name] -= 1
            if not self.missing[name] and name not in self.kept:
                self.see(name)
                complete.append(name)
        for done in {other for name in complete for other in self.recording.places[name]}:
            use = self.recording.uses[done]
            if not any(self.missing[name] or name in self.kept for name in use.roots):
                self.gradients[done] = None
                self.recording.uses[done] = replace(use, args=(), kwargs={})


def _ends(nodes: Sequence[Node], asked: Iterable[Tensor]) -> tuple[int, ...]:
    """Which of some nodes, in the order in which they were made, lead to no leaf that is asked for and no other end."""
    leading = {get_gradient_edge(leaf).node: True for leaf in asked}
    ends = []
    for place, node in enumerate(nodes):
        if not _leads(node, leading):
            leading[node] = True
            ends.append(place)
    return tuple(ends)


def _leads(node: Node, leading: dict[Node, bool]) -> bool:
    """Whether what is known to lead on can be reached; notes what it finds on the way."""
    path = [node]
    while path:
        below = [child for child, _ in path[-1].next_functions if child is not None]
        unknown = [child for child in below if child not in leading]
        if any(leading.get(child, False) for child in below) or not unknown:
            last = path.pop()
            leading[last] = leading.get(last, False) or any(leading.get(child, False) for child in below)
        else:
            path += unknown
    return leading[node]
