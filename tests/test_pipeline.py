"""The graph: what waits for what, and how many shards a row has."""

from collections import Counter

import pytest

from hpc_hipgen import pipeline
from hpc_hipgen.config import parse_experiment
from hpc_hipgen.pipeline import count_films, report_items, stages, trained_before
from hpc_hipgen.run import Run


def test_a_stage_waits_for_all_that_it_reads_and_no_more(tiny_settings):
    def after(model, **more):
        graph = stages(parse_experiment(tiny_settings | more, "x"))
        return next(set(s.after) for s in graph if s.name == f"train-{model}") - {"prepare"}

    training = {"training": {"images": 8, "batch": 4, "lr": 1e-3}}
    baseline = tiny_settings["stable_diffusion"] | {"conditioning": "caption"}
    tiny_settings["stable_diffusion"] |= {"measurement_weight": 0.1}
    tiny_settings |= {"probe": training, "reward_model": tiny_settings["ruler"]}
    tiny_settings |= {"feedback": training, "stable_diffusion_caption": baseline}
    assert after("stable_diffusion") == {"train-autoencoder", "train-probe"}
    assert after("stable_diffusion_caption") == {"train-autoencoder"}
    assert after("feedback") == {"train-stable_diffusion", "train-reward_model"}
    assert after("llcm") == {"train-feedback"}
    measured = tiny_settings["llcm"] | {"measurement_weight": 0.1}
    its_own = {"train-feedback", "train-probe", "train-reward_model"}
    assert after("llcm", llcm=measured) == its_own
    assert after("llcm", llcm=tiny_settings["llcm"] | {"base": "/elsewhere"}) == set()
    graph = stages(parse_experiment(tiny_settings, "x"))
    evaluate = next(stage for stage in graph if stage.name == "evaluate")
    assert set(evaluate.after) == {"sample", "train-ruler"}


def test_what_is_not_done_yet_is_named_with_what_does_it(tmp_path, tiny_settings):
    run = Run.create(tmp_path / "run", parse_experiment(tiny_settings, "x"))
    run.mark_done("prepare")
    told = r"train-llcm waits for train-stable_diffusion; `python -m jobs\.launch "
    with pytest.raises(ValueError, match=told):
        pipeline.check_before(run, "train-llcm")
    pipeline.check_before(run, "train-llcm", ["prepare"])
    for stage in stages(run.config):
        run.mark_done(stage.name)
    pipeline.check_before(run, "train-llcm")


def test_shards_hold_every_drawing_of_every_caption(tmp_path, tiny_settings):
    tiny_settings["sampling"] |= {"per_caption": 3, "shard_size": 4}
    run = Run.create(tmp_path / "run", parse_experiment(tiny_settings, "x"))
    found = Counter(row for row, _ in report_items(run))
    assert found["llcm_2"] == 4, "15 drawings of 5 films"
    assert found["ruler"] == 2, "a film once"


def test_a_manifest_is_read_once_for_all_rows(tmp_path, tiny_settings, monkeypatch):
    reads = []
    monkeypatch.setattr(pipeline, "test_films", lambda run: reads.append(run) or 5)
    run = Run.create(tmp_path / "run", parse_experiment(tiny_settings, "x"))
    assert len(report_items(run)) > len(run.rows()) > len(reads) == 1


def test_a_film_is_counted_once_whatever_its_views(tmp_path):
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("split,view\ntrain,0\ntrain,1\ntrain,0\ntest,0\n")
    assert count_films(manifest, "train") == 2


def test_a_model_was_trained_with_what_it_needs_and_no_more(tiny_settings):
    def before(model, **more):
        return set(trained_before(parse_experiment(tiny_settings | more, "x"), model))

    training = {"training": {"images": 8, "batch": 4, "lr": 1e-3}}
    tiny_settings["stable_diffusion"]["measurement_weight"] = 0.1
    baseline = tiny_settings["stable_diffusion"] | {"conditioning": "caption"}
    tiny_settings |= {"probe": training, "reward_model": tiny_settings["ruler"]}
    tiny_settings |= {"feedback": training, "stable_diffusion_caption": baseline}
    teacher = {"autoencoder", "probe", "stable_diffusion", "reward_model", "feedback"}
    assert before("llcm") == teacher
    assert before("stable_diffusion_caption") == {"autoencoder", "probe"}
    unmeasured = baseline | {"measurement_weight": 0}
    assert before("stable_diffusion_caption", stable_diffusion_caption=unmeasured) == {
        "autoencoder"
    }
    assert before("llcm", llcm=tiny_settings["llcm"] | {"base": "/elsewhere"}) == set()
    del tiny_settings["stable_diffusion"]
    elsewhere = training | {"base": "/elsewhere"}
    assert before("llcm", feedback=elsewhere) == {"reward_model", "feedback"}
