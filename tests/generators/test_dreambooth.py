"""DreamBooth: subjects of a few films, prior images that the base drew, and one loss of both."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from hpc_hipgen.config import Training, parse_experiment
from hpc_hipgen.evaluation.samples import read_samples
from hpc_hipgen.generators import dreambooth
from hpc_hipgen.generators.dreambooth import DreamBoothTask, instance_films, prior_prompts
from hpc_hipgen.generators.sampling import draw, load_pipeline
from hpc_hipgen.radiograph.captions import parse_caption
from hpc_hipgen.radiograph.layouts import read_classes, read_manifest
from hpc_hipgen.radiograph.phantom import sample_parameters
from hpc_hipgen.run import Run
from hpc_hipgen.training.clock import ImageRandom
from hpc_hipgen.training.loop import train
from jobs import prepare, sample
from jobs.train import train as train_stage

STEPS = {"images": 8, "batch": 4, "lr": 1e-3}


def one_class(run):
    """The class folders of the run, all six films in class 4."""
    films = read_classes(run.path("data"))
    return replace(films, prompt_class=np.full(len(films), 4))


@pytest.fixture
def make_task(tiny_run, tiny_settings, tmp_path):
    """Makes a task on three films of one subject; settings of its section can be changed."""

    def make(run=tiny_run, **section):
        settings = {"subjects": {4: "sks"}, "films": 3, "prior_images": 4, "training": STEPS}
        tiny_settings["dreambooth"] = settings | section
        config = parse_experiment(tiny_settings, "test")
        base, cache = run.path("stable_diffusion", "export"), run.path("latents")
        return DreamBoothTask(config, one_class(run), base, cache, tmp_path / "prior")

    return make


def batch_of(task, n=4):
    return task.batch(np.arange(n), ImageRandom(0, np.arange(n)))


def test_class_folders_say_what_the_manifest_says(tiny_run):
    films, expected = (
        read(tiny_run.path("data"), *more)
        for read, more in ((read_classes, ()), (read_manifest, ("train",)))
    )
    for name, value in vars(expected).items():
        np.testing.assert_array_equal(getattr(films, name), value, err_msg=name)


def test_a_subject_has_all_views_of_its_first_films_with_its_token(tiny_run, make_task):
    films = one_class(tiny_run)
    section = make_task().section
    chosen = instance_films(films, section)
    assert len(set(chosen.film)) == 3 and len(chosen) == 3 * 2
    for text, view in zip(chosen.captions, chosen.ids, strict=True):
        plain = films.captions[films.ids.index(view)]
        assert text == f"sks {plain}" and parse_caption(text) == parse_caption(plain)
    few = films.take(range(4))  # two films
    with pytest.raises(ValueError, match="class 4 has 2 training films, 3 are needed"):
        instance_films(few, section)


def test_prior_images_are_the_bases_own_and_marked(make_task, tiny_run, tmp_path):
    task = make_task()
    prompts = prior_prompts(one_class(tiny_run), 4, seed=3)
    assert len(set(prompts)) == 4 and not any("sks" in prompt for prompt in prompts)
    paths = sorted((tmp_path / "prior").glob("*.png"))
    assert [p.with_suffix(".txt").read_text().strip() for p in paths] == prompts
    with Image.open(paths[2]) as image:
        assert image.text["synthetic"] == "hpc_hipgen"
        stored = np.asarray(image)
    pipeline = load_pipeline(tiny_run.path("stable_diffusion", "export"))
    seed = 3 * 1_000_003 + 500_002
    settings = {"steps": 2, "guidance": 3.0, "solver": "ddim", "eta": 1.0, "resolution": 32}
    (alone,) = draw(pipeline, [prompts[2]], [seed], **settings)
    assert np.abs(alone.astype(int) - stored).max() <= 1
    before = paths[0].stat().st_mtime_ns
    assert torch.equal(make_task().prior_latents, task.prior_latents)
    assert paths[0].stat().st_mtime_ns == before, "drawn once"


def test_another_teacher_draws_prior_images_with_guidance_where_the_runs_own_needs_none(
    tiny_settings, tmp_path, monkeypatch
):
    section = {"subjects": {4: "sks"}, "films": 3, "prior_images": 2, "training": STEPS}
    tiny_settings |= {
        "reward_model": tiny_settings["ruler"],
        "feedback": {"steps": 10, "stops": 2, "training": STEPS},
    }
    drawn_with = []

    def drawn(pipeline, prompts, seeds, **settings):
        drawn_with.append(settings["guidance"])
        return np.zeros((len(prompts), 32, 32), np.uint8)

    monkeypatch.setattr(dreambooth, "load_pipeline", lambda *_: None)
    monkeypatch.setattr(dreambooth, "draw", drawn)
    for number, more in enumerate(({}, {"base": str(tmp_path)})):
        tiny_settings["dreambooth"] = section | more
        config = parse_experiment(tiny_settings, "test")
        folder = tmp_path / str(number)
        dreambooth.draw_prior(tmp_path, ["a", "b"], config, folder, lambda: None)
    assert drawn_with == [1.0, config.sampling.guidance] and drawn_with[1] > 1


@pytest.mark.parametrize("train_text", [False, True])
def test_the_loss_is_that_of_the_films_plus_a_weight_times_the_priors(make_task, train_text):
    task = make_task(train_text=train_text, prior_weight=0.25)
    inputs = batch_of(task)
    with torch.no_grad():
        losses, scalars = task.module(**inputs)
        task.module.prior_weight = 0.0
        instance, _ = task.module(**inputs)
        task.module.prior_weight = 1.0
        both, _ = task.module(**inputs)
    assert torch.allclose(losses, instance + 0.25 * (both - instance), atol=1e-5)
    assert scalars["instance"] == pytest.approx(float(instance.mean()), rel=1e-4)
    assert scalars["prior"] == pytest.approx(float((both - instance).mean()), rel=1e-3)


def test_a_batch_is_a_function_of_its_clock(make_task):
    task = make_task()
    batch = batch_of(task)
    one = task.batch(np.arange(2, 3), ImageRandom(0, np.arange(2, 3)))
    assert all(torch.equal(batch[name][2:3], one[name]) for name in one)
    assert not torch.equal(batch["noise"], batch["prior_noise"])
    assert (batch["prior_weight"] == 1).all() and batch["weight"].max() > 1


def test_training_moves_the_unet_and_logs_both_losses(make_task, tmp_path):
    task = make_task()
    before = [p.detach().clone() for p in task.parts.unet.parameters()]
    training = Training(**STEPS | {"precision": "fp32", "log_images": 4})
    train(task, training, tmp_path / "dreambooth", seed=3, title="dreambooth")
    assert any(
        not torch.equal(a, b) for a, b in zip(before, task.parts.unet.parameters(), strict=True)
    )
    log = (tmp_path / "dreambooth" / "metrics.jsonl").read_text()
    assert '"instance"' in log and '"prior"' in log


@pytest.mark.slow
def test_a_run_of_dreambooth_alone(tiny_run, tmp_path, draws_what_was_stored):
    """Nine films in four classes: one of them has the three that a subject needs."""
    tree = tiny_run.config.model_dump(mode="json", exclude_unset=True)
    for name in ("stable_diffusion", "autoencoder", "llcm"):
        del tree[name]
    classes = Counter(sample_parameters(tree["seed"], number)[0] for number in range(9))
    subject = classes.most_common(1)[0][0]
    tree["data"]["train"] = 9
    tree["ruler"]["pretrained"] = str(tiny_run.path("ruler", "export"))
    tree["dreambooth"] = {
        "base": str(tiny_run.path("stable_diffusion", "export")),
        "subjects": {subject: "sks"},
        "films": 3,
        "prior_images": 3,
        "training": STEPS,
    }
    run = Run.create(tmp_path / "run", parse_experiment(tree, "dreambooth"))
    prepare.prepare(run)
    assert run.rows() == ["ruler", "dreambooth"] and run.config.trained() == ["dreambooth"]
    train_stage(run, "dreambooth")
    sample.sample_items(run, [("dreambooth", 0)])
    for drawn in read_samples(run.path("samples", "dreambooth", "shard-00000.tar")):
        named = drawn.prompt.startswith("sks ")
        assert named == (drawn.info["prompt_class"] == subject)
        assert f"left {drawn.info['asked_left']:.1f} degrees" in drawn.prompt
    assert draws_what_was_stored(run, "dreambooth", "dreambooth")


def test_the_export_draws_at_the_size_of_the_views_whatever_its_base_has(
    make_task, run_of_another_size, exported_size
):
    assert exported_size(make_task(run_of_another_size)) == 32
