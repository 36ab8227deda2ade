"""Signals that ask a run to save and stop, obeyed at the next step boundary."""

from __future__ import annotations

import signal
from types import FrameType

import torch

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)


class Interrupted(RuntimeError):
    """The run was asked to stop; it has saved, and goes on when it is started again."""


class StopRequest:
    """Set by SIGTERM or SIGUSR2 on any rank; ranks agree on it in `agreed`.

    The handler only sets a flag: saving inside a signal handler would find the other ranks in
    the middle of a collective.
    """

    def __init__(self) -> None:
        """Installs the handlers; possible in the main thread only, elsewhere they are left out."""
        self.requested = False
        self._previous = {}
        for number in SIGNALS:
            try:
                self._previous[number] = signal.signal(number, self._on_signal)
            except ValueError:
                break

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def agreed(self, device: torch.device) -> bool:
        """True on all ranks when any of them was asked."""
        if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
            return self.requested
        flag = torch.tensor(int(self.requested), device=device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return bool(flag.item())

    def close(self) -> None:
        """Puts the previous handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
