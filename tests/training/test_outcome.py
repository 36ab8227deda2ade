"""Exit statuses of the training commands."""

import errno
import signal

import pytest

from hpc_hipgen.training.interruption import Interrupted
from hpc_hipgen.training.outcome import CheckpointError, NonFiniteLossError, exit_status


def ends(error, folder):
    def work():
        if error:
            raise error

    return exit_status(work, folder)


@pytest.mark.parametrize(
    "error, status, words",
    [
        (None, 0, ""),
        (ValueError("batch 9: above the data"), 2, "error: batch 9: above the data\n"),
        (CheckpointError("no checkpoint"), 1, "error: no checkpoint\n"),
        (NonFiniteLossError("not finite"), 1, "error: not finite\n"),
        (Interrupted("stopped at 8 images", signal.SIGTERM), 130, "stopped at 8 images\n"),
    ],
)
def test_what_went_wrong_is_one_line(tmp_path, capsys, error, status, words):
    assert ends(error, tmp_path) == status
    assert capsys.readouterr().err == words


def test_a_full_disk_names_the_run_and_other_faults_of_it_are_not_hidden(tmp_path, capsys):
    assert ends(OSError(errno.ENOSPC, "No space left on device"), tmp_path) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: the disk is full")
    with pytest.raises(OSError, match="Input/output error"):
        ends(OSError(errno.EIO, "Input/output error"), tmp_path)


def test_a_run_of_somebody_elses_is_named_and_ctrl_c_is_no_traceback(tmp_path, capsys):
    assert ends(PermissionError(errno.EACCES, "Permission denied", str(tmp_path)), tmp_path) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: Permission denied")
    assert ends(KeyboardInterrupt(), tmp_path) == 130
    assert "goes on" in capsys.readouterr().err
