"""unCLIP: prior and decoder are trained on what the stock pipeline will hand them."""

import copy
import json

import numpy as np
import pytest
import torch
from stock_pipelines import asked_of_stock

from hpc_hipgen.config import ConfigError, Training, check_inputs, parse_experiment
from hpc_hipgen.evaluation.samples import read_samples
from hpc_hipgen.generators import clip
from hpc_hipgen.generators.prior import PriorTask, load_prior, prior_scheduler
from hpc_hipgen.generators.sampling import load_pipeline
from hpc_hipgen.generators.unclip import UnCLIPDrawer, UnCLIPTask, noised_embeddings
from hpc_hipgen.radiograph.layouts import read_manifest
from hpc_hipgen.run import Run
from hpc_hipgen.tasks import load_autoencoder
from hpc_hipgen.training import engine
from hpc_hipgen.training.clock import ImageRandom
from hpc_hipgen.training.loop import train
from jobs import evaluate, prepare, report
from jobs.train import train as train_stage

STOCK = """
import json, sys
import numpy as np, torch
from diffusers import StableUnCLIPPipeline

folder, prompts, seeds, settings = json.loads(sys.argv[1])
pipeline = StableUnCLIPPipeline.from_pretrained(folder)
pipeline.set_progress_bar_config(disable=True)
generators = [torch.Generator().manual_seed(seed) for seed in seeds]
images = pipeline(prompts, generator=generators, height=32, width=32, output_type="np",
                  **settings).images
assert not [m for m in sys.modules if m.split(".")[0] in ("hpc_hipgen", "jobs")]
np.savez(sys.argv[2], images=np.rint(images.mean(-1) * 255).astype(np.uint8))
"""


@pytest.fixture(scope="module")
def pipeline(embedding_run):
    return load_pipeline(embedding_run.path("unclip", "export"))


@pytest.fixture(scope="module")
def samples(embedding_run):
    return read_samples(embedding_run.path("samples", "unclip", "shard-00000.tar"))


@pytest.fixture
def make_task(embedding_run, embedding_settings):
    """Makes the task of a model on the first stages of the run; its settings can be changed."""

    def make(name, seed=3, **section):
        embedding_settings[name].update(section)
        embedding_settings["seed"] = seed
        config = parse_experiment(embedding_settings, "test")
        run, films = embedding_run, read_manifest(embedding_run.path("data"), "train")
        if name == "clip":
            return clip.CLIPTask(config, films, films)
        if name == "prior":
            parts = clip.load_parts(run.first_stage("clip"))
            return PriorTask(config, films, parts, run.path("latents"))
        folders = (run.first_stage("clip"), run.first_stage("prior"))
        return UnCLIPTask(config, films, load_autoencoder(run), *folders, run.path("latents"))

    return make


def batch_of(task, n=4):
    return task.batch(np.arange(n), ImageRandom(0, np.arange(n)))


def test_the_stock_pipeline_draws_what_was_stored(embedding_run, samples, stock_process):
    first = samples[:3]  # a batch
    prompts, seeds, settings = asked_of_stock(first)
    info = first[0].info
    settings |= {
        "prior_num_inference_steps": info["prior_steps"],
        "prior_guidance_scale": info["prior_guidance"],
        "noise_level": info["noise_level"],
    }
    export = str(embedding_run.path("unclip", "export"))
    drawn, said = stock_process(STOCK, [export, prompts, seeds, settings])
    for image, sample in zip(drawn["images"], first, strict=True):
        assert np.array_equal(image, sample.image), sample.key
    assert not np.array_equal(drawn["images"][0], drawn["images"][1])
    assert "truncated" not in said and "not expected" not in said


def test_samples_say_how_they_were_drawn(samples, embedding_run):
    asked = {"steps": 2, "guidance": 3.0, "prior_steps": 2, "prior_guidance": 1.5, "noise_level": 3}
    assert all(sample.info.items() >= asked.items() for sample in samples)


def test_an_export_names_no_path_of_this_machine(embedding_run):
    for model in ("clip", "prior", "unclip"):
        files = [p for p in embedding_run.path(model, "export").rglob("*") if p.is_file()]
        assert not [p for p in files if p.suffix in (".bin", ".pt", ".pkl")]
        for path in files:
            assert str(embedding_run.folder).encode() not in path.read_bytes(), path


def test_the_prior_sees_captions_as_the_pipeline_hands_them_over(embedding_run, pipeline):
    parts = clip.load_parts(embedding_run.path("clip", "export"))
    prompts = ["left 90.0 degrees", "right 101.5 degrees, left 80 degrees"]
    found = clip.encode_captions(parts, ["", "", *prompts])
    pooled, states, mask = pipeline._encode_prior_prompt(prompts, "cpu", 1, True)
    assert torch.allclose(found.pooled, pooled, atol=1e-5)
    assert torch.allclose(found.states, states, atol=1e-5)
    assert torch.equal(found.mask, mask)


def test_the_prior_works_on_standardised_embeddings(make_task, pipeline, embedding_run):
    task = make_task("prior")
    embeddings = batch_of(task, 12)["embeddings"]
    assert torch.allclose(embeddings.mean(0), torch.zeros(32), atol=1e-4)
    assert torch.allclose(embeddings.std(0), torch.ones(32), atol=1e-4)
    parts = clip.load_parts(embedding_run.path("clip", "export"))
    raw = clip.image_embeddings(parts.model, task.films.images)
    assert torch.allclose(pipeline.prior.post_process_latents(embeddings), raw, atol=1e-4)
    assert torch.allclose(pipeline.image_normalizer.scale(raw), embeddings, atol=1e-4)


def test_prior_and_decoder_share_embeddings_that_are_made_once(make_task, monkeypatch):
    prior = make_task("prior")
    monkeypatch.setattr(clip, "image_embeddings", None)
    assert torch.equal(make_task("prior").embeddings, prior.embeddings)
    assert torch.equal(make_task("unclip").embeddings, prior.embeddings)


def test_captions_are_dropped_for_guidance(make_task):
    task = make_task("prior", caption_dropout=0.5)
    inputs = task.batch(np.zeros(200, int), ImageRandom(0, np.arange(200)))
    null = task.captions.take(torch.tensor([task.null]))
    for name, value in null.items():
        dropped = (inputs[name] == value).flatten(1).all(1)
        assert 70 < dropped.sum() < 130, name
    assert null["mask"].sum() == 2, "the empty caption"


def test_a_prior_of_another_clip_is_refused(embedding_run):
    with pytest.raises(ValueError, match="for embeddings of width 32, but the CLIP's have 64"):
        load_prior(embedding_run.path("prior", "export"), 64)


def test_a_clip_is_fp32_however_it_is_stored(embedding_run, make_task, tmp_path, monkeypatch):
    parts = clip.load_parts(embedding_run.path("clip", "export"))
    parts.model.half().save_pretrained(tmp_path)
    parts.tokenizer.save_pretrained(tmp_path)
    own = Run.first_stage
    monkeypatch.setattr(
        Run, "first_stage", lambda run, name: tmp_path if name == "clip" else own(run, name)
    )
    encoder = make_task("unclip").parts.text_encoder
    for network in (encoder, clip.load_parts(tmp_path).model):
        assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_embeddings_are_noised_as_in_the_pipeline(pipeline):
    random = torch.Generator().manual_seed(0)
    embeddings, noise = torch.randn(2, 3, 32, generator=random)
    for level in (0, 150):
        levels = torch.full((3,), level)
        found = noised_embeddings(embeddings, noise, levels, pipeline.image_normalizer)
        expected = pipeline.noise_image_embeddings(embeddings, level, noise)
        assert torch.allclose(found, expected, atol=1e-5)


def test_the_decoder_is_told_the_embedding_and_nothing_else(make_task):
    task = make_task("unclip", caption_dropout=0.5)
    inputs = task.batch(np.zeros(200, int), ImageRandom(0, np.arange(200)))
    dropped = (inputs["text"] == 0).all(1)  # the pipeline has zeros there too
    assert 70 < dropped.sum() < 130
    assert len(torch.unique(inputs["text"][~dropped], dim=0)) == (~dropped).sum(), "noise"
    unet = task.module.networks["unet"]
    latents, told = inputs["latents"][:2], inputs["text"][~dropped][:2]
    with torch.no_grad():
        states = [None, torch.randn(2, 5, 32)]
        plain, captioned = (unet(latents, 500, s, class_labels=told).sample for s in states)
        other = unet(latents, 500, None, class_labels=told.flip(0)).sample
    assert torch.equal(plain, captioned) and not torch.equal(plain, other)


@pytest.mark.parametrize("name", ["clip", "prior", "unclip"])
def test_resuming_is_exact(make_task, tmp_path, name):
    training = {"images": 12, "batch": 4, "lr": 1e-3, "ema_images": 8, "checkpoint_images": 4}
    training |= {"schedule": "constant", "precision": "fp32", "micro_batch": 2}
    half, straight = (make_task(name, training=training) for _ in range(2))
    again = make_task(name, seed=4, training=training)  # other first weights
    whole = Training(**training)
    part = whole.model_copy(update={"images": 8})
    for task, length, folder in ((half, part, "a"), (again, whole, "a"), (straight, whole, "b")):
        train(task, length, tmp_path / folder, seed=3, title=name)
    pairs = zip(
        again.averages["export"].module.parameters(),
        straight.averages["export"].module.parameters(),
        strict=True,
    )
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", ["clip", "prior", "unclip"])
def test_partitioned_weights_train_the_same(make_task, tmp_path, monkeypatch, name):
    # one rank alone would use no stage
    monkeypatch.setattr(engine, "zero_stage", lambda training: training.zero_stage)
    # stage 3 puts a linear layer of its own in torch's place, with other last bits
    monkeypatch.setattr(torch.nn.functional, "linear", torch.nn.functional.linear)
    losses = []
    for stage in (1, 3):
        settings = {"images": 8, "batch": 4, "lr": 1e-3, "precision": "fp32", "log_images": 4}
        task = make_task(name, training=settings)
        folder = tmp_path / str(stage)
        train(task, Training(**settings, zero_stage=stage), folder, seed=3, title=name)
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_solvers_are_those_of_the_other_rows(pipeline):
    settings = {"steps": 4, "guidance": 2.0, "resolution": 32, "prior_steps": 2}
    settings |= {"prior_guidance": 1.0, "noise_level": 0}
    images = [
        UnCLIPDrawer(pipeline).draw(["a hip"], [1], solver=solver, **settings)
        for solver in ("ddim", "leapfrog")
    ]
    assert images[0].shape == (1, 32, 32) and not np.array_equal(*images)


def test_a_seed_means_the_same_image_in_bf16(embedding_run, pipeline):
    half = load_pipeline(embedding_run.path("unclip", "export"), "bf16")
    settings = {"steps": 3, "guidance": 2.0, "solver": "ddim", "eta": 1.0, "resolution": 32}
    settings |= {"prior_steps": 2, "prior_guidance": 1.5, "noise_level": 3}
    images = [
        UnCLIPDrawer(p).draw(["a hip"] * 2, [1, 2], **settings).astype(int)
        for p in (pipeline, half)
    ]
    assert abs(images[0] - images[1]).max() <= 8 < images[0].std()


@pytest.mark.slow
def test_the_report_has_the_row(embedding_run):
    from hpc_hipgen.pipeline import score_items

    assert embedding_run.rows() == ["ruler", "round_trip", "unclip"]
    evaluate.evaluate_items(embedding_run, score_items(embedding_run))
    assert "unCLIP, 2 steps" in report.report(embedding_run).read_text()
    metrics = json.loads(embedding_run.path("report", "metrics.json").read_text())
    found = metrics["faithfulness"]["unclip"]["left"]
    assert found["n"] + found["failed"] == 5
    assert metrics["runtime"]["train-clip"]["validation_angle_mae"] > 0


@pytest.mark.slow
def test_first_stages_of_another_run(embedding_run, embedding_settings, tmp_path):
    tree = embedding_settings
    for name in ("ruler", "autoencoder", "clip", "prior"):
        tree[name] = {"pretrained": str(embedding_run.path(name, "export"))}
    tree["ruler"]["training"] = {"images": 8, "batch": 4, "lr": 1e-3}
    config = parse_experiment(tree, "x")
    check_inputs(config, "x")
    assert config.trained() == ["unclip"]
    run = Run.create(tmp_path / "run", config)
    prepare.prepare(run)
    train_stage(run, "unclip")
    same = (embedding_run.path("prior", "export"), run.path("unclip", "export", "prior"))
    weights = [(p / "diffusion_pytorch_model.safetensors").read_bytes() for p in same]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("clip", None, "clip: needed by prior"),
        ("prior", None, "prior: needed by unclip"),
        ("autoencoder", None, "autoencoder: needed by unclip"),
        ("clip.training", None, "clip: give either pretrained"),
        ("clip.pretrained", "/nowhere", "text: given, but the pretrained folder /nowhere"),
        ("clip.contrast", 3, "training.batch: 4 is not a multiple of contrast 3"),
        ("clip.vision.patch", 12, "data.resolution: 32 is not a multiple of 12"),
        ("clip.vision.heads", 3, "clip.vision.width: 32 is not a multiple of 3"),
        ("prior.pretrained", "/nowhere", "width: given, but the pretrained folder /nowhere"),
        ("prior", {"pretrained": "/nowhere"}, "embeddings of the CLIP that it was trained with"),
        ("prior.heads", 3, "prior.width: 32 is not a multiple of 3"),
        ("unclip.noise_levels", 3, "noise_level: 3 is not below unclip.noise_levels, 3"),
        ("unclip.sampling.prior_step", 1, "unknown key 'unclip.sampling.prior_step'"),
        ("unclip.unet.block_out_channels", [8, 16], "8 is not a multiple of 16"),
        ("prior.caption_dropout", 0, "prior_guidance: needs prior.caption_dropout"),
        ("unclip.caption_dropout", 0, "sampling.guidance: needs unclip.caption_dropout"),
    ],
)
def test_a_mistake_is_one_line(embedding_settings, key, value, words):
    tree = copy.deepcopy(embedding_settings)
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        node = node[parent]
    node[last] = value
    with pytest.raises(ConfigError) as error:
        parse_experiment(tree, "x.yaml")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_clip_that_is_not_there_is_named(embedding_settings):
    embedding_settings["clip"] = {"pretrained": "/nowhere"}
    config = parse_experiment(embedding_settings, "x.yaml")
    assert config.trained() == ["ruler", "autoencoder", "prior", "unclip"]
    with pytest.raises(ConfigError, match=r"x.yaml: clip\.pretrained: /nowhere holds no config"):
        check_inputs(config, "x.yaml")


@pytest.mark.parametrize("steps", [2, 25])
def test_the_prior_starts_from_pure_noise(steps):
    scheduler = prior_scheduler()
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps[0] == len(scheduler.alphas_cumprod) - 1


def test_the_decoder_is_told_of_its_own_view_and_of_all_levels_of_noise(make_task):
    task = make_task("unclip", caption_dropout=1e-9)
    views = np.arange(200) % task.size
    told = task.batch(views, ImageRandom(0, np.arange(200)))["text"]
    assert len(told[:, 32:].unique(dim=0)) > task.section.noise_levels / 3
    task = make_task("unclip", caption_dropout=1e-9, noise_levels=4)
    told = batch_of(task)["text"][:, :32]
    assert torch.cdist(told, task.embeddings).argmin(1).tolist() == [0, 1, 2, 3]


def test_the_export_has_the_average_of_the_decoder(make_task, tmp_path):
    task = make_task("unclip")
    torch.nn.init.constant_(task.averages["export"].module["unet"].conv_in.bias, 2.0)
    task.export(tmp_path)
    assert (load_pipeline(tmp_path).unet.conv_in.bias == 2).all()
