"""TensorBoard as a job: it serves, it says how to reach it, and it ends when told to."""

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from hpc_hipgen.config import ConfigError
from jobs import tensorboard

ROOT = Path(__file__).parents[2]


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()
    return folder.parent


def test_a_run_a_name_or_all_runs(results, tmp_path, monkeypatch):
    site = tmp_path / "site.yaml"
    site.write_text(f"results: {results}")
    monkeypatch.setenv("HIPGEN_SITE", str(site))
    assert tensorboard.curves(None) == results
    assert tensorboard.curves(str(results / "mine")) == results / "mine" / "tensorboard"
    assert tensorboard.curves("mine") == results / "mine" / "tensorboard"
    with pytest.raises(ConfigError, match="yours: no such folder"):
        tensorboard.curves("yours")


def test_the_tunnel_goes_through_the_login_node(monkeypatch):
    monkeypatch.setattr(tensorboard.getpass, "getuser", lambda: "ada")
    monkeypatch.setenv("SLURM_SUBMIT_HOST", "login1")
    assert "    ssh -N -L 4321:node7:4321 ada@login1" in tensorboard.tunnel(4321, "node7")
    monkeypatch.setenv("HIPGEN_LOGIN", "hpc.example.org")
    assert any("ada@hpc.example.org" in line for line in tensorboard.tunnel(4321, "node7"))


@pytest.mark.parametrize(
    ("host", "address", "listens"),
    [
        ("node7", "10.0.0.7", "node7"),
        ("node7", "127.0.1.1", "0.0.0.0"),  # as in the /etc/hosts of Debian
        ("node7", OSError("unknown"), "0.0.0.0"),
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
    ],
)
def test_a_node_is_listened_on_where_others_reach_it(monkeypatch, host, address, listens):
    def look_up(name):
        if isinstance(address, OSError):
            raise address
        return address

    monkeypatch.setattr(tensorboard.socket, "gethostbyname", look_up)
    assert tensorboard.listens_on(host) == listens


@pytest.mark.slow
def test_the_script_serves_until_it_is_stopped(results):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    process = subprocess.Popen(
        ["bash", "sbatch/tensorboard.sh", str(results / "mine")],
        cwd=ROOT,
        env=environment | {"HIPGEN_PYTHON": sys.executable, "HIPGEN_SITE": "local"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        lines = [process.stdout.readline() for _ in range(5)]
        port = re.search(r"ssh -N -L (\d+):127.0.0.1:\1 ", "".join(lines))[1]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as page:
            assert page.status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


def test_nothing_to_show_is_one_line(capsys, tmp_path):
    assert tensorboard.main([str(tmp_path / "nowhere")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
