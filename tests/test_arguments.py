"""What commands say of mistakes that are no mistake of the program."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpc_hipgen.arguments import open_run, status_of
from hpc_hipgen.config import parse_experiment
from hpc_hipgen.run import Run
from jobs import benchmark, cross_validate, evaluate, export, prepare, report, sample, train

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENAMETOOLONG])
def test_a_place_that_nothing_can_be_written_to_is_one_line(number, capsys):
    def work():
        raise OSError(number, os.strerror(number), "/mnt/films")

    assert status_of(work) == 2
    assert capsys.readouterr().err == f"error: /mnt/films: {os.strerror(number)}\n"


def test_what_cannot_be_read_is_told_from_what_cannot_be_written(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read everything

    def work(name):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / name))

    assert status_of(lambda: work("mine")) == status_of(lambda: work("new")) == 2
    read, written = capsys.readouterr().err.splitlines()
    assert read.startswith(f"error: {tmp_path}/mine: cannot be read") and "--run" not in read
    assert "name a folder of your own by --run" in written


def test_a_full_disk_is_that_of_the_run_where_nobody_says_which(capsys):
    def work():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert status_of(work, folder=Path("results/mine")) == 1
    assert capsys.readouterr().err.startswith("error: results/mine: the disk is full")


def test_a_terminal_without_letters_stops_nothing():
    code = (
        "from hpc_hipgen.arguments import status_of; status_of(lambda: print('fallo\u00e9') or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "fallo\\xe9\n"), done.stderr


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """The parent of the runs of a site."""
    (tmp_path / "site.yaml").write_text(f"results: {tmp_path / 'runs'}")
    monkeypatch.setenv("HIPGEN_SITE", str(tmp_path / "site.yaml"))
    return tmp_path / "runs"


def test_a_run_is_meant_by_its_folder_or_its_name(runs, tmp_path, tiny_settings):
    config = parse_experiment(tiny_settings, "x")
    for folder in (runs / "mine", tmp_path / "elsewhere"):
        Run.create(folder, config)
    assert open_run("mine").folder == runs / "mine"
    assert open_run(str(tmp_path / "elsewhere")).folder == tmp_path / "elsewhere"


@pytest.mark.parametrize(
    "command", [benchmark, cross_validate, evaluate, export, prepare, report, sample, train]
)
def test_every_command_finds_runs_by_name(runs, capsys, command):
    model = ["ruler"] if command is train else []
    assert command.main(["--run", "nowhere", *model]) == 2
    assert capsys.readouterr().err == f"error: {runs}/nowhere: not a run folder (no config.yaml)\n"


def test_a_run_without_anything_to_report_is_told_without_heavy_imports(tiny_settings, tmp_path):
    Run.create(tmp_path / "run", parse_experiment(tiny_settings, "x"))
    code = (
        "import sys; from jobs.report import main\n"
        f"print(main(['--run', '{tmp_path}/run']), 'diffusers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "2 False\n", done.stderr


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
