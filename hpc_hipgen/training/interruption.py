"""Signals that ask a run to save and stop, obeyed at the next step boundary.

SIGTERM means stop. SIGUSR2, which the scheduler sends before the time limit and at preemption,
means stop here and go on later: the job queues itself again (hpc_hipgen/cluster/calls.py).
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

STOP = signal.SIGTERM
GO_ON_LATER = signal.SIGUSR2
_ORDER = (None, STOP, GO_ON_LATER)
"""The later of two requests wins: a preempted job may get both, and must come back."""


@contextmanager
def handled(number: signal.Signals, handler: Any) -> Iterator[None]:
    """Handles a signal in this way; outside the main thread whoever is there handles signals."""
    try:
        before = signal.signal(number, handler)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(number, before)


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM (scancel, kill, a shutdown) stops what is within as Ctrl-C does.

    So does SIGHUP, of a terminal that is closed, unless nohup has it ignored.
    """
    with ExitStack() as stack:
        stack.enter_context(handled(STOP, _interrupt))
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            stack.enter_context(handled(signal.SIGHUP, _interrupt))
        yield


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


class Interrupted(RuntimeError):
    """The run was asked to stop; it has saved, and goes on when it is started again."""

    def __init__(self, message: str, number: signal.Signals) -> None:
        """`number`: the signal that asked, STOP or GO_ON_LATER."""
        super().__init__(message)
        self.signal = number


class OtherRankError(RuntimeError):
    """Another rank has failed, or was asked to stop, at what this one waits for."""


class StopRequest:
    """Set by SIGTERM or SIGUSR2 on any rank; ranks agree on it in `agreed`.

    The handler only sets a flag: saving inside a signal handler would find the other ranks in
    the middle of a collective.
    """

    def __init__(self) -> None:
        """Installs the handlers; possible in the main thread only, elsewhere they are left out."""
        self._request = 0
        self._previous = {}
        for number in (STOP, GO_ON_LATER):
            try:
                self._previous[number] = signal.signal(number, self._on_signal)
            except ValueError:
                break

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._request = max(self._request, _ORDER.index(signal.Signals(number)))

    def agreed(self, device: torch.device) -> signal.Signals | None:
        """The signal that any rank got, the same on all of them; None when there was none."""
        import torch

        place = self._request
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            flag = torch.tensor(place, device=device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            place = int(flag.item())
        return _ORDER[place]

    def close(self) -> None:
        """Puts the previous handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
