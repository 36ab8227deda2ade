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


def _say(word: int) -> None:
    torch.distributed.broadcast(torch.tensor(word, device=device()), src=0)


def _word_of_rank_0() -> int:
    word = torch.tensor(_FAILED, device=device())
    torch.distributed.broadcast(word, src=0)
    return int(word.item())
