"""In which turns the stages of a graph share the processor of one machine.

The smallest networks gain little from a second thread, and starting a stage keeps one core busy
however many there are: side by side, each with a part of the cores, stages end sooner than one
after the other (docs/log.md, 2026-11-29). How many cores a stage has follows from the graph alone,
not from what happens to be at work beside it: a run that was interrupted goes on to the same
numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from hpc_hipgen.pipeline import Stage


def turns(graph: Sequence[Stage]) -> list[list[Stage]]:
    """The stages, side by side in each turn, in the order in which they are to begin.

    A stage comes in the first turn before which all had theirs that it waits for. But models for
    which the same stages wait come in one turn, the last of these: generators beside one another.
    Within a turn that begins first behind which the longest chain of others waits.

    Args:
        graph: the stages, each after those that it waits for.
    """
    waiting = {stage.name: [s.name for s in graph if stage.name in s.after] for stage in graph}
    turn = _longest(graph, {stage.name: stage.after for stage in graph})
    for names in filter(None, waiting.values()):
        alike = [stage.name for stage in graph if stage.model and waiting[stage.name] == names]
        turn |= dict.fromkeys(alike, max((turn[name] for name in alike), default=0))
    behind = _longest(graph[::-1], waiting)
    found = [
        [stage for stage in graph if turn[stage.name] == number]
        for number in range(1 + max(turn.values(), default=-1))
    ]
    return [sorted(stages, key=lambda s: -behind[s.name]) for stages in found if stages]


def _longest(graph: Sequence[Stage], near: Mapping[str, Collection[str]]) -> dict[str, int]:
    """Length of the longest chain that ends at each stage; `near`: its last links, seen before."""
    length: dict[str, int] = {}
    for stage in graph:
        links = [length[name] for name in near[stage.name] if name in length]
        length[stage.name] = 1 + max(links, default=-1)
    return length
