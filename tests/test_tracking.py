"""Weights & Biases: only where it is configured, and then all that a run has to say."""

import json
import subprocess
import sys

import pytest
import yaml

from hpc_hipgen.config import ConfigError, parse_experiment
from hpc_hipgen.run import Run
from hpc_hipgen.tracking import check_tracking, tracked
from jobs import launch, report

FAKE = """
import json, os

def note(what, **more):
    with open(os.environ["FAKE_WANDB"], "a") as file:
        file.write(json.dumps({"what": what, **more}) + "\\n")

class Artifact:
    def __init__(self, name, type, metadata):
        self.facts = {"name": name, "type": type, "metadata": metadata}

    def add_dir(self, path):
        self.facts["copied"] = [os.environ["WANDB_DATA_DIR"], os.environ["WANDB_CACHE_DIR"]]
        self.facts["files"] = sorted(os.listdir(path))

class Image:
    def __init__(self, path):
        assert os.path.isfile(path)
        self.shown = path

class Run:
    def __init__(self, name, step):
        self.name, self.step = name, step

    def log(self, values, step=None):
        note("log", step=step, values={k: getattr(v, "shown", v) for k, v in values.items()})

    def log_artifact(self, artifact):
        note("artefact", **artifact.facts)

    def finish(self, exit_code=0):
        note("finish", exit_code=exit_code)

def Settings(**values):
    return values

def init(**settings):
    note("init", **settings)
    return Run(settings["name"], int(os.environ.get("FAKE_STEP", "0")))
"""


@pytest.fixture
def no_wandb(monkeypatch):
    """Without the package, whatever this machine has."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


@pytest.fixture
def said(tmp_path, monkeypatch):
    """A fake package, and what it was told so far."""
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "wandb.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path / "fake")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    log = tmp_path / "said.jsonl"
    monkeypatch.setenv("FAKE_WANDB", str(log))
    yield lambda: [json.loads(x) for x in log.read_text().splitlines()] if log.exists() else []
    sys.modules.pop("wandb", None)


def make_run(folder, tree, **wandb):
    settings = {"logging": {"wandb": {"project": "hips", **wandb}}}
    return Run.create(folder / "mine", parse_experiment(tree | settings, "x"))


def test_it_is_configured_or_not_there(tmp_path, tiny_settings, said):
    run = Run.create(tmp_path / "plain", parse_experiment(tiny_settings, "x"))
    with tracked(run, "llcm") as tracker:
        tracker.log(8, {"loss": 1.0})
        tracker.pictures({"samples": tmp_path / "absent.png"})
        tracker.artefact("model", tmp_path)
    assert said() == [] and "wandb" not in sys.modules


def test_a_stage_is_one_run_that_goes_on(tmp_path, tiny_settings, said):
    tiny_settings["evaluation"]["films"] = str(tmp_path / "rex-miller")
    run = make_run(tmp_path, tiny_settings)
    for images in (8, 16):
        with tracked(run, "llcm") as tracker:
            tracker.log(images, {"loss": 0.5})
    first, logged, finish, second, *_ = said()
    assert first["project"] == "hips" and first["mode"] == "offline"
    assert first["settings"] == {"disable_git": True, "disable_code": True}
    assert first["dir"] == str(run.folder) and run.path("wandb").is_dir()
    assert first["name"] == "mine-llcm" and first["group"] == "mine"
    assert first["id"] == second["id"] and first["resume"] == "allow"
    assert first["config"]["llcm"]["skip"] == 20
    assert "rex-miller" not in str(first["config"]), "names of folders are nobody else's business"
    assert (logged["step"], logged["values"]) == (8, {"loss": 0.5}) and finish["exit_code"] == 0
    other = make_run(tmp_path / "elsewhere", tiny_settings)
    with tracked(other, "llcm"):
        pass
    assert said()[-2]["id"] != first["id"]


def test_lines_are_told_again_where_they_are_not_known(tmp_path, tiny_settings, said, monkeypatch):
    """Offline the folder of the last start is all that counts; a service knows what it got."""
    run = make_run(tmp_path, tiny_settings)
    monkeypatch.setenv("FAKE_STEP", "9")
    with tracked(run, "llcm") as tracker:
        for images in (4, 8, 12):
            tracker.log(images, {"loss": 0.5})
        tracker.log(None, {"r": 0.9})
    assert [line["step"] for line in said() if line["what"] == "log"] == [12, None]


def test_a_failed_stage_ends_as_failed_and_other_ranks_say_nothing(tmp_path, tiny_settings, said):
    run = make_run(tmp_path, tiny_settings)
    with pytest.raises(RuntimeError), tracked(run, "llcm"):
        raise RuntimeError("the loss is not finite")
    assert said()[-1] == {"what": "finish", "exit_code": 1}
    count = len(said())
    with tracked(run, "llcm", active=False) as tracker:
        tracker.log(8, {"loss": 1.0})
    assert len(said()) == count


@pytest.mark.parametrize(
    ("films", "allowed", "pictures", "artefacts"),
    [
        (None, {}, ["closest_pairs", "dots", "samples"], 1),
        ("evaluation", {}, ["closest_pairs", "dots", "samples"], 0),  # phantoms and drawn films
        ("data", {}, ["dots"], 0),
        ("data", {"films": True}, ["closest_pairs", "dots", "samples"], 1),
    ],
)
def test_pictures_of_real_films_stay_here(
    tmp_path, tiny_settings, said, capsys, films, allowed, pictures, artefacts
):
    (tmp_path / "clinic").mkdir()
    if films:
        tiny_settings[films] |= {"films": str(tmp_path / "clinic")}
    if films == "data":
        tiny_settings["data"]["source"] = "films"
    run = make_run(tmp_path, tiny_settings, **allowed)
    run.path("report", "figures").mkdir(parents=True)
    for name in ("closest_pairs", "dots", "samples"):
        run.path("report", "figures", f"{name}.png").touch()
    run.path("report", "metrics.json").write_text('{"faithfulness": {}}')
    report._track(run)
    logged = [line["values"] for line in said() if line["what"] == "log"]
    assert logged[-1].keys() == set(pictures)
    assert len([line for line in said() if line["what"] == "artefact"]) == artefacts
    assert ("shows real films" in capsys.readouterr().out) == (artefacts == 0)


def test_artefacts_are_copied_in_the_run_and_what_refuses_them_fails_no_stage(
    tmp_path, tiny_settings, said, capsys, monkeypatch
):
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)
    run = make_run(tmp_path, tiny_settings)
    (tmp_path / "export").mkdir()
    with tracked(run, "llcm") as tracker:
        tracker.artefact("model", tmp_path / "export")
        (artefact,) = [line for line in said() if line["what"] == "artefact"]
        assert artefact["copied"] == [str(run.path("wandb").resolve())] * 2
        monkeypatch.setattr(sys.modules["wandb"], "Artifact", None)  # as a disk that is full
        tracker.artefact("model", tmp_path / "export")
    assert "Weights & Biases did not take" in capsys.readouterr().err
    assert said()[-1] == {"what": "finish", "exit_code": 0}


def test_artefacts_can_be_left_out(tmp_path, tiny_settings, said):
    run = make_run(tmp_path, tiny_settings, artefacts=False)
    with tracked(run, "llcm") as tracker:
        tracker.artefact("model", tmp_path)
    assert [line["what"] for line in said()] == ["init", "finish"]


def test_a_missing_package_is_said_before_anything_is_submitted(
    tmp_path, tiny_settings, no_wandb, capsys
):
    tree = tiny_settings | {"logging": {"wandb": {"project": "hips"}}}
    with pytest.raises(ConfigError, match=r"pip install 'wandb"):
        check_tracking(parse_experiment(tree, "x"))
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(tree))
    assert launch.main([str(tmp_path / "x.yaml"), "--run", str(tmp_path / "results" / "x")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: logging.wandb: ") and error.count("\n") == 1
    assert not (tmp_path / "results").exists()
    check_tracking(parse_experiment(tiny_settings, "x"))


def test_an_unknown_mode_and_an_empty_project_are_refused(tiny_settings):
    for wandb in ({"project": ""}, {"project": "hips", "mode": "on"}, {}):
        with pytest.raises(ConfigError, match=r"logging\.wandb"):
            parse_experiment(tiny_settings | {"logging": {"wandb": wandb}}, "x")


def test_a_run_from_before_there_was_logging_goes_on(tmp_path, tiny_settings):
    config = parse_experiment(tiny_settings, "x")
    run = Run.create(tmp_path / "run", config)
    path = run.path("config.yaml")
    tree = yaml.safe_load(path.read_text())
    del tree["logging"]
    path.write_text(yaml.safe_dump(tree))
    assert Run.create(run.folder, config).config == config


@pytest.mark.slow
def test_training_tells_its_losses_and_hands_over_its_files(tiny_run, tmp_path, said):
    from jobs import train

    tree = tiny_run.config.model_dump(mode="json")
    tree["ruler"]["training"] |= {"log_images": 4}
    run = make_run(tmp_path, tree)
    run.path("data").symlink_to(tiny_run.path("data"))
    run.mark_done("prepare")
    assert train.main(["--run", str(run.folder), "ruler"]) == 0
    what = [line["what"] for line in said()]
    assert what == ["init", "log", "log", "artefact", "artefact", "finish"]
    logged = [line for line in said() if line["what"] == "log"]
    assert [line["step"] for line in logged] == [4, 8]
    assert {"loss", "lr", "images_per_second", "memory_gib"} <= set(logged[0]["values"])
    checkpoint, model = (line for line in said() if line["what"] == "artefact")
    assert checkpoint["type"] == "checkpoint" and "state.pt" in checkpoint["files"]
    assert checkpoint["name"] == "mine-ruler-checkpoint"
    assert model["type"] == "model" and "ruler.json" in model["files"]


def test_nothing_of_it_is_imported_unasked():
    code = "import sys; import hpc_hipgen.tracking; print('wandb' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
