"""What commands say of mistakes that are no mistake of the program."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpc_hipgen.arguments import status_of

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENAMETOOLONG])
def test_a_place_that_nothing_can_be_written_to_is_one_line(number, capsys):
    def work():
        raise OSError(number, os.strerror(number), "/mnt/films")

    assert status_of(work) == 2
    assert capsys.readouterr().err == f"error: /mnt/films: {os.strerror(number)}\n"


def test_a_reader_that_has_seen_enough_is_no_error():
    code = (
        "import sys; from hpc_hipgen.arguments import status_of\n"
        "sys.exit(status_of(lambda: [print('x' * 4096, flush=True) for _ in range(99)] and 0))"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.read(1)
        process.stdout.close()
        assert process.wait(60) == 0 and process.stderr.read() == b""
