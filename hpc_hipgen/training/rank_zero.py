"""Long work that one rank does before training, while the others wait."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hpc_hipgen.training.engine import device, rank, world_size
from hpc_hipgen.training.interruption import OtherRankError

_BUSY, _DONE, _FAILED = range(3)


def only_rank_0(work: Callable[[Callable[[], None]], None]) -> None:
    """Lets rank 0 do some work; the others return when it is done, and fail when it fails.

    `work` is given a function to call now and then, at least every few minutes: the process group
    ends what waits for more than its timeout. Every rank has to come here.

    Raises:
        OtherRankError: on another rank than 0, when the work has failed there.
    """
    if world_size() == 1:
        work(lambda: None)
        return
    if rank():
        while (word := _word_of_rank_0()) == _BUSY:
            pass
        if word == _FAILED:
            raise OtherRankError("rank 0 has failed at what this rank waited for; see its log")
        return
    try:
        work(lambda: _say(_BUSY))
    except BaseException:
        _say(_FAILED)
        raise
    _say(_DONE)


EVERY = 64
"""Steps of `together` between two signs of life."""


def together(work: Callable[[Callable[[], None]], None], steps: int) -> None:
    """Lets every rank do a part of some work, and fail where one fails.

    `work` calls what it is given after each of its steps, of which no rank has more than `steps`. A
    rank that is done, or has nothing to do, waits for the others no longer than `EVERY` of theirs
    at a time, so that the process group does not end what takes long.

    Raises:
        OtherRankError: on ranks above 0, when the work has failed on another one; rank 0 raises
            what that one did, as far as it can be told.
    """
    left, done = -(-steps // EVERY) + 1, 0

    def beat(problem: Exception | None = None) -> None:
        nonlocal left
        left -= 1
        said: list[tuple[str, int | None, str] | None] = [None] * world_size()
        torch.distributed.all_gather_object(said, problem and _words(problem))
        if first := next(filter(None, said), None):
            left = 0
            raise _StoppedError(*first)

    def step() -> None:
        nonlocal done
        done += 1
        if done % EVERY == 0:
            beat()

    problem: Exception | None = None
    try:
        work(step)
    except _StoppedError as stopped:
        problem = stopped.error()  # all ranks have heard of it
    except Exception as error:
        problem = error
    try:
        while left:
            beat(problem)
    except _StoppedError as stopped:
        problem = problem or stopped.error()
    if problem:
        raise problem


class _StoppedError(Exception):
    """What another rank said of its failure."""

    def __init__(self, kind: str, number: int | None, text: str) -> None:
        super().__init__(text)
        self.kind, self.number = kind, number

    def error(self) -> Exception:
        text = str(self)
        if rank():
            return OtherRankError(f"another rank has failed: {text}")
        if self.kind == "OSError":
            return OSError(self.number, text)
        return ValueError(text) if self.kind == "ValueError" else RuntimeError(text)


def _words(problem: Exception) -> tuple[str, int | None, str]:
    kinds = [kind.__name__ for kind in (OSError, ValueError) if isinstance(problem, kind)]
    text = getattr(problem, "strerror", None) or str(problem) or repr(problem)
    return (*kinds, "RuntimeError")[0], getattr(problem, "errno", None), text


def _say(word: int) -> None:
    torch.distributed.broadcast(torch.tensor(word, device=device()), src=0)


def _word_of_rank_0() -> int:
    word = torch.tensor(_FAILED, device=device())
    torch.distributed.broadcast(word, src=0)
    return int(word.item())
