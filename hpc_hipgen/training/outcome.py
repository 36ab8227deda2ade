"""How a training command ends: one line for what went wrong, and an exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from hpc_hipgen.arguments import status_of
from hpc_hipgen.training.interruption import Interrupted


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; the ones before it are kept."""


class NonFiniteLossError(RuntimeError):
    """The loss, or its gradient, is not a number; nothing was applied to the weights."""


def exit_status(work: Callable[[], None], folder: Path) -> int:
    """Does the work of a training command and says how it ended.

    Returns:
        As `arguments.status_of`, with ValueError as a mistake of the user. Besides, 1 where it
        could not go on (a loss that is not finite, a checkpoint that could not be written, a full
        disk below `folder`), 130 when it was asked to stop and has saved.
    """

    def trained() -> int:
        try:
            work()
        except Interrupted as error:
            print(error, file=sys.stderr)
            return 130
        except (CheckpointError, NonFiniteLossError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        return 0

    return status_of(trained, ValueError, folder)
