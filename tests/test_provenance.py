"""What is recorded of a launch repeats it, and holds no secrets."""

import json
import subprocess

import pytest
import yaml

from hpc_hipgen import provenance
from hpc_hipgen.cluster.site import Site
from hpc_hipgen.config import parse_experiment
from hpc_hipgen.provenance import is_secret, record_launch, record_start, redact
from hpc_hipgen.run import Run


@pytest.fixture
def run(tmp_path, tiny_settings):
    return Run.create(tmp_path / "run", parse_experiment(tiny_settings, "x"))


def git(folder, *arguments):
    name = ["-c", "user.name=x", "-c", "user.email=x@x"]
    done = subprocess.run(
        ["git", *name, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A repository of two committed files, in the place of this one."""
    folder = tmp_path / "clone"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "a.py").write_text("one\n\ntwo\n \n")
    (folder / "icon.bin").write_bytes(bytes(range(256)))
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    monkeypatch.setattr(provenance, "ROOT", folder)
    return folder


def lines(run):
    return [
        json.loads(x) for x in run.path("provenance", "launches.jsonl").read_text().splitlines()
    ]


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "HF_TOKEN", "PASSWORD", "aws_secret_access_key"])
def test_names_of_secrets(name):
    assert is_secret(name)


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "KEYBOARD", "NCCL_DEBUG", "MONKEY"])
def test_names_of_other_things(name):
    assert not is_secret(name)


def test_secrets_are_blanked_out_and_short_words_are_not():
    variables = {"A_TOKEN": "s3cr3t!", "B_TOKEN": "s3cr3t!more", "C_KEY": "on", "PATH": "/usr/bin"}
    said = redact("s3cr3t! s3cr3t!more on /usr/bin", variables)
    assert said == "*** *** on /usr/bin"


def test_commit_and_changes_give_the_code_that_ran(run, clone, tmp_path):
    (clone / "a.py").write_text("one\nTWO\n \n")
    (clone / "icon.bin").write_bytes(bytes(256))
    (clone / "new.yaml").write_text("name: new\n")
    (clone / "notes.txt").write_text("not code\n")
    (clone / "conda" / "lib").mkdir(parents=True)
    (clone / "conda" / "lib" / "package.py").write_text("of an environment\n")
    record_launch(run, ["launch"])
    (line,) = lines(run)
    again = tmp_path / "again"
    git(tmp_path, "clone", "-q", str(clone), str(again))
    git(again, "checkout", "-q", line["commit"])
    git(again, "apply", str(run.path("provenance", line["uncommitted_changes"])))
    for name in ("a.py", "icon.bin", "new.yaml"):
        assert (again / name).read_bytes() == (clone / name).read_bytes()
    assert not (again / "notes.txt").exists() and not (again / "conda").exists()


def test_secrets_of_any_settings_file_are_blanked_out(run, clone, monkeypatch):
    (clone / "site.yaml").write_text("hours: 1\n")
    git(clone, "add", ".")
    git(clone, "commit", "-qm", "site")
    (clone / "site.yaml").write_text("hours: 2\nenv: {WANDB_API_KEY: abcdef12, NCCL_DEBUG: INFO}\n")
    (clone / "new.yml").write_text('env:\n  "HF_TOKEN": "hf_secret"\n  PARTITION: a100\n')
    (clone / "new.sh").write_text("export MY_PASSWORD=hunter22\nDB_PASSWORD='two, words'\n")
    (clone / "new.toml").write_text('HF_TOKEN = "toml secret"\n')
    (clone / "new.py").write_text("API_KEY = read()\n")
    record_launch(run, ["launch"])
    text = run.path("provenance", lines(run)[0]["uncommitted_changes"]).read_text()
    assert not any(
        secret in text for secret in ("abcdef12", "hf_secret", "hunter22", "words", "secret")
    )
    for kept in ("hours: 2", "NCCL_DEBUG: INFO", "PARTITION: a100", "API_KEY = read()"):
        assert kept in text


def test_what_the_user_has_git_show_changes_no_patch(run, clone, monkeypatch, tmp_path):
    """Another program for differences, colours, no prefixes: and no secret gets through."""
    for key, value in (
        ("diff.external", "echo difference of"), ("color.ui", "always"), ("diff.noprefix", "true"),
    ):  # fmt: skip
        git(clone, "config", key, value)
    (clone / "a.py").write_text("one\nTWO\n \n")
    (clone / "größe.yaml").write_text("env: {HF_TOKEN: hf_secret}\nname: new\n")
    record_launch(run, ["launch"])
    patch = run.path("provenance", lines(run)[0]["uncommitted_changes"])
    assert "hf_secret" not in patch.read_text() and "HF_TOKEN: ***" in patch.read_text()
    again = tmp_path / "again"
    git(tmp_path, "clone", "-q", str(clone), str(again))
    git(again, "apply", str(patch))
    assert (again / "a.py").read_text() == (clone / "a.py").read_text()
    assert (again / "größe.yaml").read_text() == "env: {HF_TOKEN: ***}\nname: new\n"


def test_a_clone_of_somebody_else_has_a_commit_too(run, clone, monkeypatch):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    refused = subprocess.run(["git", "rev-parse", "HEAD"], cwd=clone, capture_output=True)
    assert refused.returncode, "git does not look whose the clone is"
    record_launch(run, ["launch"])
    assert len(lines(run)[0]["commit"]) == 40


def test_a_line_that_was_cut_short_stops_no_job(run, clone, capsys):
    record_launch(run, ["launch"])
    path = run.path("provenance", "launches.jsonl")
    with path.open("a") as file:
        file.write('{"time": "2026')
    record_start(run, "train-llcm")
    assert "warning" not in capsys.readouterr().err
    record_launch(run, ["again"])
    cut, last = path.read_text().splitlines()[1:]
    assert cut == '{"time": "2026' and json.loads(last)["command"] == ["again"]


def test_every_launch_keeps_its_own_changes(run, clone):
    record_launch(run, ["launch"])
    for content in ("x\n", "y\n", "x\n"):
        (clone / "a.py").write_text(content)
        record_launch(run, ["launch"])
    names = [line["uncommitted_changes"] for line in lines(run)]
    assert names[0] is None and names[1] == names[3] != names[2]
    for name in set(names[1:]):
        assert run.path("provenance", name).is_file()
    assert "pytest==" in run.path("provenance", "packages.txt").read_text()


def test_a_job_says_when_the_code_has_changed_since_the_launch(run, clone, monkeypatch, capsys):
    record_start(run, "train-llcm")
    assert not run.path("provenance").exists(), "the run was not launched"
    record_launch(run, ["launch"])
    record_start(run, "train-llcm")
    assert "warning" not in capsys.readouterr().err
    (clone / "a.py").write_text("changed\n")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    record_start(run, "train-llcm")
    assert "train-llcm works with other code than was there" in capsys.readouterr().err
    jobs = run.path("provenance", "jobs.jsonl").read_text().splitlines()
    one, two = map(json.loads, jobs)
    assert one["uncommitted_changes"] is None and one["job"] is None
    assert (two["stage"], two["job"], two["restarts"]) == ("train-llcm", "17", 2)
    assert run.path("provenance", two["uncommitted_changes"]).is_file()


@pytest.mark.parametrize("at_launch", [True, False])
def test_a_job_where_there_is_no_git_claims_no_other_code(
    run, clone, monkeypatch, capsys, at_launch
):
    (clone / "a.py").write_text("changed\n")
    with monkeypatch.context() as without:
        if not at_launch:
            without.setattr(provenance, "ROOT", clone.parent / "nowhere")
        record_launch(run, ["launch"])
    if at_launch:
        monkeypatch.setattr(provenance, "ROOT", clone.parent / "nowhere")
    record_start(run, "train-llcm")
    said = capsys.readouterr().err
    assert "other code" not in said
    assert ("no git here, so it is not known with which code train-llcm" in said) is at_launch


def test_without_git_there_is_a_record_all_the_same(run, tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path / "nowhere")
    record_launch(run, ["launch", "--run", "x"])
    assert lines(run)[0]["commit"] == "" and lines(run)[0]["command"][-1] == "x"


def test_the_site_is_recorded_and_no_secret_is(run, clone, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "wandb-secret-1")
    site = Site(env={"HF_TOKEN": "hf-secret-2", "NCCL_DEBUG": "INFO"}, setup=["echo hf-secret-2"])
    (clone / "a.py").write_text("login('wandb-secret-1')\n")
    (clone / "site.yaml").write_text("env: {HF_TOKEN: hf-secret-2}\n")
    record_launch(run, ["launch", "--key=wandb-secret-1"], site)
    stored = yaml.safe_load(run.path("provenance", "site.yaml").read_text())
    assert stored["env"] == {"HF_TOKEN": "***", "NCCL_DEBUG": "INFO"}
    assert lines(run)[0]["command"] == ["launch", "--key=***"]
    for path in run.folder.rglob("*"):
        if path.is_file():
            assert b"-secret-" not in path.read_bytes(), path
