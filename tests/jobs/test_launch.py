"""The launcher on graphs of stages that take no time; jobs run in processes of their own."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from PIL import Image
from processes import ended

from hpc_hipgen.cluster import local
from hpc_hipgen.cluster.site import Site
from hpc_hipgen.cluster.stage_files import stage_logs
from hpc_hipgen.config import DreamBooth, Experiment, load_experiment
from hpc_hipgen.files import lock, write_atomic
from hpc_hipgen.pipeline import sample_shard, score_shard, stages
from hpc_hipgen.run import Run
from jobs import launch

ROOT = Path(__file__).parents[2]
FAKES = ROOT / "tests" / "cluster"
LOCAL = Site(executor="local")
PAIRS = Site(executor="local", local_parallel=2)
TRAINING = {"images": 64, "batch": 16, "lr": 1e-3}
SETTINGS = {"name": "tiny", "ruler": {"training": TRAINING}}


@pytest.fixture
def fakes(monkeypatch):
    monkeypatch.syspath_prepend(str(FAKES))
    monkeypatch.setenv("PYTHONPATH", str(FAKES))
    monkeypatch.setenv("HIPGEN_PYTHON", sys.executable)  # jobs have the path only beside it
    import fake_stages

    return fake_stages


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "tiny", Experiment.model_validate(SETTINGS))


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(SETTINGS))
    return path


def command(*arguments, **more):
    """python -m jobs.launch in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "jobs.launch", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        **more,
    )


def test_stages_run_in_order_and_their_words_are_shown(run, fakes, capfd):
    assert launch.execute(run, fakes.GRAPH, LOCAL, slurm=False) == 0
    said = capfd.readouterr().out
    words = ["[1/3] first", "first speaks", "second says hello", "[3/3] array: done in"]
    places = [said.index(word) for word in words]
    assert places == sorted(places)
    for line in ("RANK=0", "WORLD_SIZE=1", "HF_HUB_OFFLINE=1", "SLURM_JOB_ID=None"):
        assert f"  {line}\n" in said
    assert "submitit INFO" not in said
    assert run.path("array.log").read_text().splitlines() == [str(i) for i in fakes.ITEMS]
    assert run.path("provenance", "launches.jsonl").is_file()


def test_a_second_start_does_only_what_is_left(run, fakes, capfd):
    for name in ("first", "second"):
        run.mark_done(name)
    assert launch.execute(run, fakes.GRAPH, LOCAL, slurm=False) == 0
    said = capfd.readouterr().out
    assert "first: done before" in said and "second: done before" in said
    assert "first speaks" not in said


def test_a_failure_names_the_error_and_the_log(run, fakes, capfd):
    assert launch.execute(run, fakes.BROKEN, LOCAL, slurm=False) == 1
    said = capfd.readouterr()
    assert "error: broken failed: RuntimeError: the loss is not finite" in said.err
    log = Path(said.err.partition("log: ")[2].splitlines()[0])
    assert "about to break" in log.read_text()
    assert run.done("first") and not run.done("broken")


@pytest.fixture
def four_cores(monkeypatch):
    monkeypatch.setattr(local, "usable_cpus", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS")


def test_what_need_not_wait_runs_side_by_side_with_half_of_the_cores(run, fakes, four_cores, capfd):
    assert launch.execute(run, fakes.BESIDE, PAIRS, slurm=False) == 0
    threads = {path.stem: path.read_text() for path in run.folder.glob("*.threads")}
    assert threads == {"left": "2", "right": "2", "third": "2", "last": ""}
    said = capfd.readouterr().out
    assert "[2/5] left  (2 of 4 cores, log: " in said and "[5/5] last  (log: " in said
    # whose words they are
    assert "  [2] left waits for right\n" in said and "  [3] right waits for left\n" in said
    assert "  last waits for left\n" in said


def test_the_ranks_of_a_job_share_the_cores(run, fakes, four_cores, monkeypatch):
    monkeypatch.setattr(local, "local_processes", lambda kind: 2)
    begun = []
    monkeypatch.setattr(local._Launch, "_variables", lambda self, cores: begun.append(cores) or {})
    launch.execute(run, fakes.BESIDE[-1:], PAIRS, slurm=False)
    assert begun == [2]


def test_fewer_threads_than_its_share_are_the_users_to_choose(run, fakes, four_cores, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert launch.execute(run, fakes.BESIDE, PAIRS, slurm=False) == 0
    assert run.path("left.threads").read_text() == "1"


def test_two_would_leave_the_longer_one_alone_with_half_of_the_cores(run, fakes, four_cores, capfd):
    for name in ("first", "third", "last"):
        run.mark_done(name)
    graph = [stage for stage in fakes.BESIDE if stage.name != "third"]
    run.path("left.threads").touch()  # does not wait for it
    run.path("right.threads").touch()
    assert launch.execute(run, graph, PAIRS, slurm=False) == 0
    said = capfd.readouterr().out
    assert said.index("left: done in") < said.index("] right  (log: ")


def test_one_after_another_where_the_site_says_so(run, fakes, four_cores, capfd):
    one = Site(executor="local", local_parallel=1)
    assert launch.execute(run, fakes.GRAPH, one, slurm=False) == 0
    assert "3 stages on this machine, one after another" in capfd.readouterr().out


def test_a_failure_stops_what_runs_beside_it_when_that_has_saved(run, fakes, four_cores, capfd):
    assert launch.execute(run, fakes.BREAKS_BESIDE, PAIRS, slurm=False) == 1
    said = capfd.readouterr()
    assert "error: breaks failed: RuntimeError: the loss is not finite" in said.err
    stopping = said.out.index("stopping train-slow: it is saved first")
    assert said.out.index("breaks failed: RuntimeError: the loss is not finite") < stopping
    assert ended(int(run.path("slow.pid").read_text()), seconds=1)
    assert run.path("slow.saved").is_file() and not run.done("train-slow")


def start(run, graph, setup=()):
    """A launcher in a process of its own whose slow stage is at work; and that stage's pid."""
    code = (
        "import signal, sys; from fake_stages import *; from jobs.launch import *\n"
        # a shell that runs the tests in the background has it ignored, which is inherited
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from hpc_hipgen.cluster import local\n"
        "local.usable_cpus = lambda: 2\n"
        f"site = Site(executor='local', setup={list(setup)}, local_parallel=2)\n"
        f"sys.exit(execute(Run({str(run.folder)!r}), {graph}, site, False))"
    )
    path = os.pathsep.join([str(FAKES), str(ROOT)])
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path, "HIPGEN_PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    pid = run.path("slow.pid")
    for _ in range(300):
        if pid.is_file():
            return process, int(pid.read_text())
        time.sleep(0.1)
    raise AssertionError("the slow stage did not start")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_launch_takes_its_stage_along(run, number):
    process, pid = start(run, "SLOW")
    process.send_signal(number)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "The same command goes on" in said
    assert ended(pid)
    assert run.done("first") and not run.done("slow")


@pytest.mark.parametrize("setup", [[], ["true"]])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_in_a_terminal_lets_training_save(run, number, setup):
    run.mark_done("first")
    process, pid = start(run, "SAVING", setup)
    if number == signal.SIGINT:  # which a terminal sends to all
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert ended(pid, seconds=1) and run.path("slow.saved").is_file()


def test_ctrl_c_lets_both_save_that_are_trained_side_by_side_even_before_their_first_step(run):
    run.mark_done("first")
    process, pid = start(run, "SAVING_BESIDE")
    other = run.path("other.pid")
    for _ in range(300):
        if other.is_file():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert ended(pid, seconds=1) and ended(int(other.read_text()), seconds=1)
    assert run.path("slow.saved").is_file() and run.path("other.saved").is_file()


def test_a_second_ctrl_c_does_not_wait_for_training_to_save(run):
    run.mark_done("first")
    process, pid = start(run, "SAVING", ["true"])
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert ended(pid, seconds=1) and not run.path("slow.saved").is_file()


def test_a_killed_launch_leaves_nothing_running(run):
    run.mark_done("first")
    process, pid = start(run, "SLOW")
    process.kill()
    process.wait()
    assert ended(pid)


def test_a_folder_of_somebody_else_is_wrong_input(experiment, tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "/theirs/run")

    monkeypatch.setattr(launch.Run, "create", refuse)
    assert launch.main([str(experiment), "--run", str(tmp_path / "run"), "--site", "local"]) == 2
    assert "error: /theirs/run: Permission denied; name a folder" in capsys.readouterr().err


def test_a_run_below_a_file_and_a_full_disk_are_one_line(experiment, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    given = [str(experiment), "--site", "local", "--run", str(tmp_path / "file" / "run")]
    assert launch.main(given) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "below a file" in said and said.count("\n") == 1

    def full(*_, **__):
        raise OSError(errno.EDQUOT, "Disk quota exceeded", "/home/me/run")

    monkeypatch.setattr(launch.Run, "create", full)
    assert launch.main([*given[:-1], str(tmp_path / "run")]) == 1
    assert capsys.readouterr().err.startswith("error: /home/me/run: the disk is full")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.trian=3", "unknown key 'data.trian'"),
        ("data.train=1 data.views=8", "batch: 16 is more than the data set has"),
        ("ruler.training.lr=-1", "ruler.training.lr"),
        ("data.train", "expected key.sub=value"),
        ("data.source=films", "data.films"),
        ("ruler.pretrained=/nowhere", "/nowhere holds no ruler.json"),
        ("evaluation.inception=/nowhere", "bash sbatch/prefetch.sh"),
        ("evaluation.films=/nowhere", "evaluation.films: /nowhere is not a folder"),
    ],
)
def test_bad_settings_end_before_anything_is_written(
    experiment, tmp_path, capsys, setting, message
):
    folder = tmp_path / "runs" / "x"
    assert launch.main([str(experiment), "--run", str(folder), *setting.split()]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1
    assert said.out == ""
    assert not folder.parent.exists()


def test_bad_films_end_before_anything_is_written(experiment, tmp_path, capsys):
    films = tmp_path / "films"
    films.mkdir()
    (films / "landmarks.csv").write_text("image,side,head_x\n")
    folder = tmp_path / "runs" / "x"
    arguments = ["data.source=films", f"data.films={films}"]
    assert launch.main([str(experiment), "--run", str(folder), *arguments]) == 2
    assert "landmarks.csv" in capsys.readouterr().err
    assert not folder.parent.exists()


def test_splits_without_a_film_are_named(experiment, tmp_path, capsys):
    rows = ["image,side,head_x,head_y,head_radius,rim_x,rim_y,split"]
    for n in range(20):
        Image.linear_gradient("L").resize((120, 90 + n)).save(tmp_path / f"{n}.png")
        rows += [f"{n}.png,image_left,30,40,8,28,31,train"]
        rows += [f"{n}.png,image_right,90,41,8,92,32,train"]
    (tmp_path / "landmarks.csv").write_text("\n".join(rows))
    arguments = ["data.source=films", f"data.films={tmp_path}"]
    assert launch.main([str(experiment), "--run", str(tmp_path / "runs" / "x"), *arguments]) == 2
    assert "error: data.films: no film in split validation, test" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_batch_above_the_films_is_refused(experiment, tmp_path, capsys, monkeypatch):
    splits = ("train", "train", "validation", "test")
    films = [SimpleNamespace(split=split, dog=split, prompt_class=4) for split in splits]
    monkeypatch.setattr(launch, "read_films", lambda config: (films, []))
    (tmp_path / "films").mkdir()
    arguments = ["data.source=films", f"data.films={tmp_path / 'films'}", "data.views=7"]
    arguments = [str(experiment), "--run", str(tmp_path / "runs" / "x"), *arguments]
    assert launch.main(arguments) == 2
    assert "16 is more than the data set has (2 films x 7 views = 14)" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    arguments[-1] = "data.views=8"
    assert launch.main([*arguments, "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert "note: 1 dogs in split validation; data.train" in said and "in split test" in said
    more = [SimpleNamespace(split=s, dog=i, prompt_class=4) for s in splits[2:] for i in range(10)]
    films[2:] = more
    assert launch.main([*arguments, "--dry-run"]) == 0
    assert "note" not in capsys.readouterr().err


def test_a_subject_without_films_is_said_before_anything_is_trained():
    training = {"images": 4, "batch": 1, "lr": 1.0}
    section = DreamBooth(films=3, training=training)
    words = "dreambooth.subjects: class 2 has 1 training films, 3 are needed; leave the class out"
    assert section.lacking({1: 3, 2: 1, 3: 9, 4: 5}).startswith(words)
    assert section.lacking({1: 3, 3: 9, 4: 5}).startswith(words.replace("has 1", "has 0"))
    assert DreamBooth(films=3, subjects={4: "sks"}, training=training).lacking({4: 3}) is None


def test_a_site_says_where_runs_lie(experiment, run, tmp_path, capsys):
    site = tmp_path / "site.yaml"
    site.write_text(f"{{executor: local, results: {tmp_path}}}")
    at = ["--site", str(site), "--dry-run"]
    for arguments in ([str(experiment)], [str(experiment), "--run", "tiny"], ["tiny"]):
        assert launch.main([*arguments, *at]) == 0
        assert f"run {run.folder}, this machine" in capsys.readouterr().out
    assert launch.main([str(experiment), "--run", "other", *at]) == 0
    assert f"run {tmp_path / 'other'}, " in capsys.readouterr().out
    assert launch.main(["tiny", "seed=3", *at]) == 2
    assert "a run keeps its settings" in capsys.readouterr().err


def test_the_data_can_be_looked_at_before_anything_learns(experiment, run, capsys):
    given = [str(experiment), "--run", str(run.folder), "--site", "local", "--only-prepare"]
    assert launch.main([*given, "--dry-run"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == ["prepare"]
    run.mark_done("prepare")
    assert launch.main(given) == 0
    said = capsys.readouterr().out
    assert f"Data: {run.path('data')}; the same command without --only-prepare goes on" in said


def test_a_finished_run_opens_after_its_films_have_moved(tmp_path, capsys):
    settings = SETTINGS | {"evaluation": {"films": str(tmp_path / "gone")}}
    run = Run.create(tmp_path / "tiny", Experiment.model_validate(settings))
    run.path("films").mkdir()
    run.path("films", "manifest.csv").write_text("split,view\ntest,0\n")
    run.mark_done("prepare")
    complete(run)
    run.path("report").mkdir()
    run.path("report", "metrics.json").write_text("{}")
    assert launch.main([str(run.folder), "--site", "local"]) == 0
    assert "everything is done" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--site", "nowhere"], ["--redo", "prepaer"]])
def test_bad_options_end_before_anything_is_written(experiment, tmp_path, capsys, arguments):
    folder = tmp_path / "runs" / "x"
    assert launch.main([str(experiment), "--run", str(folder), *arguments]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not folder.parent.exists()


def test_a_batch_that_the_gpus_cannot_share_is_refused(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text("{executor: slurm, resources: {gpu: {gpus: 3}}}")
    config = Experiment.model_validate(SETTINGS)
    with pytest.raises(launch.ConfigError, match=r"16 .* among 3 processes"):
        launch.check_ranks(config, stages(config), launch.load_site(str(path)), slurm=True)
    lab = load_experiment(ROOT / "configs" / "lab_ruler.yaml", [f"lab_ruler.films={tmp_path}"])
    path.write_text("{executor: slurm, stages: {cross_validate: {gpus: 5}}}")
    with pytest.raises(launch.ConfigError, match=r"lab_ruler.training.batch: .* among 5 processes"):
        launch.check_ranks(lab, stages(lab), launch.load_site(str(path)), slurm=True)


def test_several_nodes_for_one_process_are_refused(experiment, tmp_path, capsys):
    path = tmp_path / "site.yaml"
    path.write_text("{executor: slurm, resources: {cpu: {nodes: 2}}}")
    arguments = [str(experiment), "--run", str(tmp_path / "runs" / "x"), "--site", str(path)]
    assert launch.main(arguments) == 2
    assert "prepare is the work of one process" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_gpus_of_a_node_share_out_every_experiment(path):
    config, site = load_experiment(path), launch.load_site("a100")
    launch.check_ranks(config, stages(config), site, slurm=True)


def test_a_small_model_asks_for_one_gpu_and_the_papers_for_a_node():
    site = launch.load_site("a100")
    for name, gpus in {"llcm": {1}, "unclip": {1}, "llcm_a100": {1, 8}}.items():
        graph = stages(load_experiment(ROOT / "configs" / f"{name}.yaml"))
        assert {site.of(stage).gpus for stage in graph if stage.model} == gpus
    assert site.of(next(s for s in graph if s.name == "train-llcm")).gpus == 8


def test_a_rank_holds_whole_groups_of_contrasted_pairs(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text("{executor: slurm, stages: {train-clip: {nodes: 2, gpus: 8}}}")
    site = launch.load_site(str(path))
    few, many = (
        load_experiment(ROOT / "configs" / "unclip.yaml", [f"clip.training.batch={batch}"])
        for batch in (128, 256)
    )
    launch.check_ranks(many, stages(many), site, slurm=True)
    with pytest.raises(launch.ConfigError, match=r"clip.* 128 .*16 processes in whole groups"):
        launch.check_ranks(few, stages(few), site, slurm=True)


def test_a_run_keeps_its_settings(experiment, run, capsys):
    assert launch.main([str(experiment), "--run", str(run.folder), "seed=3"]) == 2
    said = capsys.readouterr().err
    assert "other settings (seed: 0 there, 3 now)" in said
    own = f"{run.folder}/config.yaml"
    assert f"CONFIG={own}" in said
    assert launch.main([own, "--run", str(run.folder), "--dry-run"]) == 0, "as it says"


def test_how_a_run_is_executed_may_change(experiment, run, capsys):
    again = [str(experiment), "--run", str(run.folder)]
    more = ["ruler.training.micro_batch=4", "ruler.training.zero_stage=0", "sampling.batch=2"]
    assert launch.main([*again, *more, "ruler.training.lr=0.5", "--dry-run"]) == 2
    assert "settings (ruler.training.lr" in capsys.readouterr().err
    assert launch.main([*again, *more, "--dry-run"]) == 0
    assert Run(run.folder).config == run.config
    changed = Run.create(run.folder, load_experiment(experiment, more))
    assert "ruler.training.micro_batch: None there, 4 now" in capsys.readouterr().out
    assert changed.config.ruler.training.micro_batch == 4
    assert Run(run.folder).config == changed.config


def test_dry_run_writes_nothing(experiment, tmp_path, capsys):
    folder = tmp_path / "runs" / "x"
    assert launch.main([str(experiment), "--run", str(folder), "--dry-run"]) == 0
    assert launch.main([str(experiment), "--run", str(folder), "--dry-run", "--site", "a100"]) == 0
    assert "#SBATCH --gres=gpu:a100:1" in capsys.readouterr().out
    assert not folder.parent.exists()


def test_neither_an_experiment_nor_a_run_is_said(tmp_path, capsys):
    for given in ("lcm", str(tmp_path)):
        assert launch.main([given]) == 2
        said = capsys.readouterr().err
        assert f"{given}: no file of configs/, and no run" in said and said.count("\n") == 1


def test_nothing_is_forgotten_when_an_input_is_missing(tmp_path, capsys):
    settings = SETTINGS | {"evaluation": {"inception": str(tmp_path / "gone")}}
    run = Run.create(tmp_path / "tiny", Experiment.model_validate(settings))
    complete(run)
    before = sorted(run.folder.rglob("*"))
    assert launch.main([str(run.folder), "--redo", "evaluate", "--site", "local"]) == 2
    assert "bash sbatch/prefetch.sh" in capsys.readouterr().err
    assert sorted(run.folder.rglob("*")) == before


def complete(run):
    """Makes a run look finished."""
    for stage in stages(run.config):
        if stage.items is None:
            run.mark_done(stage.name)
            continue
        for item in stage.items(run):
            path = stage.artefact(run, item)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def test_a_finished_run_says_so_without_torch(experiment, run):
    complete(run)
    code = (
        "import sys; from jobs import launch; status = launch.main(sys.argv[1:])\n"
        "heavy = {'torch', 'numpy', 'pandas', 'matplotlib', 'submitit'} & set(sys.modules)\n"
        "print(sorted(heavy)); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(experiment), "--run", str(run.folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "everything is done" in done.stdout and "report.html" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_redo_forgets_a_stage_and_what_follows(run):
    complete(run)
    graph = stages(run.config)
    launch.forget(run, graph, launch.outdated(graph, "evaluate"), slurm=False)
    state = {stage.name: stage.done(run) for stage in graph}
    assert state.pop("evaluate") is state.pop("report") is False
    assert all(state.values())
    assert sample_shard(run, ("ruler", 0)).is_file()
    assert not score_shard(run, ("ruler", 0)).exists()
    with pytest.raises(launch.ConfigError, match="another run"):
        launch.outdated(graph, "prepare")


def films_run(tmp_path):
    """A run that looks finished, trains nothing and measures real films, which are gone."""
    ruler = tmp_path / "ruler"
    ruler.mkdir()
    (ruler / "ruler.json").write_text("{}")
    settings = SETTINGS | {"evaluation": {"films": str(tmp_path / "films")}}
    settings["ruler"] = {"pretrained": str(ruler), "training": TRAINING}
    run = Run.create(tmp_path / "tiny", Experiment.model_validate(settings))
    write_atomic(run.path("films", "manifest.csv"), "split,view\ntest,0\n")
    run.mark_done("prepare")
    complete(run)
    return run


def test_redo_of_films_forgets_what_was_measured_in_them(tmp_path):
    run = films_run(tmp_path)
    graph = stages(run.config)
    launch.forget(run, graph, launch.outdated(graph, "prepare"), slurm=False)
    assert run.done("prepare") is run.done("report") is None
    for item in (("films", 0), ("ruler", 0)):
        assert not sample_shard(run, item).exists() and not score_shard(run, item).exists()


def test_films_that_will_be_read_again_are_checked(tmp_path, capsys):
    run = films_run(tmp_path)
    again = [str(run.folder), "--site", "local", "--redo", "prepare"]
    assert launch.main(again) == 2
    assert "evaluation.films" in capsys.readouterr().err
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "landmarks.csv").write_text("image,side,head_x\n")
    assert launch.main(again) == 2
    assert "landmarks.csv" in capsys.readouterr().err
    assert run.done("prepare") and sample_shard(run, ("films", 0)).is_file()


def test_a_report_of_less_is_made_again(run, capsys):
    complete(run)
    again = [str(run.folder), "--site", "local"]
    assert launch.main(again) == 0 and "everything is done" in capsys.readouterr().out
    score_shard(run, ("ruler", 0)).unlink()
    assert launch.main([*again, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    todo = [line.split()[0] for line in lines if "to do" in line]
    assert todo == ["evaluate", "report"] and run.done("report")


def test_what_waits_in_a_queue_is_seen_from_a_site_without_one(run, monkeypatch, capsys):
    complete(run)
    logs = stage_logs(run, "report")
    record = {"job": "77", "log": str(logs / "001")}
    (logs / "submitted.json").write_text(json.dumps(record))
    monkeypatch.setattr(launch.shutil, "which", lambda name: f"/usr/bin/{name}")
    queue = {"77": "PENDING"}
    monkeypatch.setattr("hpc_hipgen.cluster.accounting.queued_jobs", lambda ids: queue)
    assert launch.main([str(run.folder), "--site", "local", "--redo", "evaluate"]) == 2
    assert "report is in the queue" in capsys.readouterr().err and run.done("report")


def test_redo_leaves_what_is_worked_on_alone(run, capsys):
    complete(run)
    again = [str(run.folder), "--site", "local", "--redo", "evaluate"]
    with (stage_logs(run, "report") / "running").open("w") as other:
        assert lock(other)
        other.write('{"pid": 7, "host": "node3"}')
        other.flush()
        assert launch.main(again) == 2
    assert "report is at work (pid 7 on node3)" in capsys.readouterr().err
    assert score_shard(run, ("ruler", 0)).is_file() and run.done("report")


def test_a_dry_run_shows_what_redo_would_do_again(run, capsys):
    complete(run)
    again = [str(run.folder), "--site", "local", "--dry-run", "--redo"]
    assert launch.main([*again, "evaluate"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    states = {line.split()[0]: "to do" in line for line in lines}
    assert [name for name, todo in states.items() if todo] == ["evaluate", "report"]
    assert launch.main([*again, "prepare"]) == 2
    assert "another run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "given, hint", [("llcm", "configs/llcm.yaml"), ("nothing", "no file of configs/")]
)
def test_an_experiment_without_its_ending_is_recognised(tmp_path, monkeypatch, capsys, given, hint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "site.yaml").write_text(f"{{results: {tmp_path}}}")
    assert launch.main([given, "--site", "site.yaml"]) == 2
    assert hint in capsys.readouterr().err
