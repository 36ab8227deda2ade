"""The teacher: its loss, a run of two steps, its export in a stock pipeline."""

import copy
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler
from interrupted import train_interrupted

from hpc_hipgen.config import SCHEDULE, Training, parse_experiment
from hpc_hipgen.diffusion.schedule import (
    add_noise,
    min_snr_weight,
    scaled_linear_alphas_cumprod,
    to_x0,
)
from hpc_hipgen.evaluation.samples import read_samples
from hpc_hipgen.generators import text
from hpc_hipgen.generators.focus import hip_focus
from hpc_hipgen.generators.sampling import draw, load_pipeline
from hpc_hipgen.generators.stable_diffusion import StableDiffusionTask, load_parts
from hpc_hipgen.radiograph.layouts import read_manifest
from hpc_hipgen.tasks import load_autoencoder
from hpc_hipgen.training import engine
from hpc_hipgen.training.clock import ImageRandom
from hpc_hipgen.training.loop import train


def make_task(run, settings, **section):
    settings["stable_diffusion"].update(section)
    config = parse_experiment(settings, "test")
    films = read_manifest(run.path("data"), "train")
    task_of = config.stable_diffusion
    return StableDiffusionTask(task_of, config, films, load_autoencoder(run), run.path("latents"))


def batch_of(task, n=4):
    return task.batch(np.arange(n), ImageRandom(0, np.arange(n)))


def averages(task):
    return [p.detach().cpu() for p in task.averages["export"].module.parameters()]


def test_the_stock_pipeline_draws_what_was_stored(stock):
    drawn = stock.drawn["stable_diffusion"]
    assert stock.stored["stable_diffusion"][0].info["eta"] == 1, "with fresh noise in every step"
    assert str(stock.drawn["stable_diffusion_scheduler"]) == "DDIMScheduler"
    for image, sample in zip(drawn, stock.stored["stable_diffusion"], strict=True):
        assert np.array_equal(image, sample.image), sample.key
    assert drawn.std() > 0 and not np.array_equal(drawn[0], drawn[1])


def test_an_image_does_not_depend_on_its_batch(tiny_run):
    samples = read_samples(tiny_run.path("samples", "stable_diffusion", "shard-00000.tar"))
    pipeline = load_pipeline(tiny_run.path("stable_diffusion", "export"))
    for sample in (samples[2], samples[3]):
        settings = {k: sample.info[k] for k in ("steps", "guidance", "solver", "eta")}
        alone = draw(pipeline, [sample.prompt], [sample.info["seed"]], resolution=32, **settings)[0]
        # sums of floats differ in their last bits between batch sizes
        assert np.abs(alone.astype(int) - sample.image).max() <= 1


def test_solvers_of_the_paper_and_ddim_draw_the_same(tiny_run):
    pipeline = load_pipeline(tiny_run.path("stable_diffusion", "export"))
    images = {
        solver: draw(pipeline, ["a hip"], [1], steps=4, guidance=2.0, solver=solver, resolution=32)
        for solver in ("ddim", "paper", "leapfrog")
    }
    assert np.array_equal(images["ddim"], images["paper"])
    assert not np.array_equal(images["ddim"], images["leapfrog"])


@pytest.mark.parametrize(
    "model, solver, eta",
    [("stable_diffusion", "ddim", 0), ("stable_diffusion", "ddim", 1),
     ("stable_diffusion", "leapfrog", 0), ("llcm", "lcm", 0)],
)  # fmt: skip
def test_a_seed_means_the_same_image_in_bf16(tiny_run, model, solver, eta):
    """Noise that is drawn in bf16 is other noise, and coarse."""
    settings = {"steps": 3, "guidance": 2.0, "solver": solver, "eta": eta, "resolution": 32}
    pipelines = [load_pipeline(tiny_run.path(model, "export"), p) for p in ("fp32", "bf16")]
    assert next(pipelines[1].unet.conv_in.parameters()).dtype == torch.bfloat16, "half the memory"
    images = [draw(p, ["a hip"] * 2, [1, 2], **settings).astype(int) for p in pipelines]
    assert abs(images[0] - images[1]).max() <= 8 < images[0].std()


def test_what_a_shard_cost_stands_beside_it(tiny_run):
    for row, each in (("stable_diffusion", 2 * 2), ("llcm_2", 2), ("llcm_1", 1)):
        note = json.loads(tiny_run.path("samples", row, "shard-00000.json").read_text())
        assert note["images"] == 4 and note["evaluations"] == 4 * each, row
        assert note["seconds"] > 0
    assert not list(tiny_run.path("samples", "round_trip").glob("*.json")), "no network draws there"


def test_the_checker_of_published_pipelines_is_left_out(tiny_run, tmp_path):
    """It blackens what it flags, and its weights are not fetched."""
    folder = shutil.copytree(tiny_run.path("stable_diffusion", "export"), tmp_path / "base")
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index))
    assert load_pipeline(folder).safety_checker is None


def test_no_pipeline_is_said(tmp_path):
    with pytest.raises(ValueError, match="holds no diffusers pipeline"):
        load_pipeline(tmp_path)


def test_the_prompt_decides_the_image(tiny_run):
    pipeline = load_pipeline(tiny_run.path("stable_diffusion", "export"))
    settings = {"steps": 1, "guidance": 3.0, "solver": "ddim"}
    states = [
        pipeline.encode_prompt(f"left {a} degrees", "cpu", 1, False)[0] for a in (90.0, 120.0)
    ]
    assert not torch.equal(*states)
    prompts = ["left 90.0 degrees", "left 90.0 degrees", "left 120.0 degrees"]
    drawn = draw(pipeline, prompts, [5] * 3, resolution=32, **settings)
    assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])


def test_captions_are_dropped_for_guidance(tiny_run, tiny_settings):
    task = make_task(tiny_run, tiny_settings, caption_dropout=0.5)
    texts = task.batch(np.zeros(400, int), ImageRandom(0, np.arange(400)))["text"]
    null = (texts == task.null).flatten(1).all(1)
    assert 150 < null.sum() < 250
    assert (texts[~null] == task.texts[task.rows[0]]).all()


def test_all_timesteps_are_learnt(tiny_run, tiny_settings):
    task = make_task(tiny_run, tiny_settings)
    found = task.batch(np.zeros(2000, int), ImageRandom(0, np.arange(2000)))["timesteps"]
    counts = torch.histc(found.float(), 10, 0, 1000)
    assert counts.sum() == 2000 and counts.min() > 150


def test_offset_noise_moves_whole_channels(tiny_run, tiny_settings):
    plain, offset = (
        make_task(tiny_run, tiny_settings, offset_noise=strength).batch(
            np.zeros(400, int), ImageRandom(0, np.arange(400))
        )
        for strength in (0.0, 0.5)
    )
    moved = offset["noise"] - plain["noise"]
    assert torch.allclose(moved, moved[:, :, :1, :1].expand_as(moved), atol=1e-6)
    assert 0.45 < moved[:, :, 0, 0].std() < 0.55 and abs(moved.mean()) < 0.05
    assert all(torch.equal(plain[k], offset[k]) for k in plain if k != "noise")


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_is_weighted_by_signal_to_noise(tiny_run, tiny_settings, prediction):
    task = make_task(tiny_run, tiny_settings, prediction=prediction, min_snr_gamma=5.0)
    inputs = batch_of(task)
    with torch.no_grad():
        weighted, _ = task.module(**inputs)
        task.module.min_snr_gamma = None
        plain, scalars = task.module(**inputs)
    weight = min_snr_weight(inputs["timesteps"], scaled_linear_alphas_cumprod(), 5.0, prediction)
    assert torch.allclose(weighted, plain * weight)
    assert scalars["mse"] == pytest.approx(float(plain.mean()))


def test_a_frozen_text_encoder_gives_the_same_losses_from_stored_states(tiny_run, tiny_settings):
    frozen = make_task(tiny_run, tiny_settings, train_text=False)
    trained = make_task(tiny_run, tiny_settings, train_text=True)
    assert "text_encoder" not in frozen.module.networks
    assert not any(p.requires_grad for p in frozen.parts.text_encoder.parameters())
    with torch.no_grad():
        losses = [task.module(**batch_of(task))[0] for task in (frozen, trained)]
    assert torch.allclose(*losses, atol=1e-5)
    trained.module(**batch_of(trained))[0].mean().backward()
    embedding = trained.parts.text_encoder.get_input_embeddings()
    assert embedding.network[0].weight.grad.abs().sum() > 0


def test_the_digit_baseline_has_no_measurements(tiny_run, tiny_settings, tmp_path):
    task = make_task(tiny_run, tiny_settings, conditioning="caption")
    assert not isinstance(task.parts.text_encoder.get_input_embeddings(), text.MeasurementEmbedding)
    digits = task.parts.tokenizer.convert_tokens_to_ids([f"{d}</w>" for d in "0123456789"])
    ids = text.caption_ids(task.parts.tokenizer, task.films.captions)
    assert (torch.isin(ids, torch.tensor(digits)).sum(1) >= 6).all(), "ddd.d, twice"
    assert (ids[:, -1] == task.parts.tokenizer.eos_token_id).all(), "no caption is cut"
    task.export(tmp_path / "export")
    pipeline = load_pipeline(tmp_path / "export")
    image = draw(pipeline, ["a hip"], [1], steps=1, guidance=1.0, solver="ddim", resolution=32)
    assert image.shape == (1, 32, 32)


def test_a_published_folder_is_gone_on_with(tiny_run, tiny_settings, tmp_path):
    """As Stable Diffusion 1.5 on a cluster: a folder without measurement tokens gets them."""
    make_task(tiny_run, copy.deepcopy(tiny_settings), conditioning="caption").export(tmp_path)
    published = load_parts(tmp_path)
    for shape in ("unet", "text"):
        tiny_settings["stable_diffusion"].pop(shape)
    tiny_settings["seed"] = 9
    task = make_task(tiny_run, tiny_settings, pretrained=str(tmp_path), train_text=True)
    for own, loaded in zip(task.parts.unet.parameters(), published.unet.parameters(), strict=True):
        assert torch.equal(own, loaded)
    embedding = task.parts.text_encoder.get_input_embeddings()
    assert isinstance(embedding, text.MeasurementEmbedding)
    word = published.tokenizer.convert_tokens_to_ids("hips</w>")
    expected = published.text_encoder.get_input_embeddings()(torch.tensor([word]))
    assert torch.equal(embedding(torch.tensor([word])), expected)
    task.module(**batch_of(task))[0].mean().backward()
    assert embedding.network[0].weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match=r"prediction: epsilon, but .* predicts v_prediction"):
        make_task(tiny_run, tiny_settings, prediction="epsilon")


def test_checkpointed_gradients_are_the_same(tiny_run, tiny_settings):
    gradients = []
    for checkpointed in (False, True):
        task = make_task(tiny_run, tiny_settings, gradient_checkpointing=checkpointed)
        assert task.parts.unet.is_gradient_checkpointing == checkpointed
        task.module.train()
        task.module(**batch_of(task))[0].mean().backward()
        gradients.append([p.grad for p in task.parts.unet.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


@pytest.fixture(scope="module")
def straight(tiny_run, tmp_path_factory):
    """Averages and losses of an undisturbed run in fp32, and its settings."""
    task = make_task(tiny_run, tiny_run.config.model_dump(mode="json"), train_text=True)
    folder = tmp_path_factory.mktemp("straight") / "sd"
    training = Training(
        images=12, batch=4, lr=1e-3, precision="fp32", log_images=4, deterministic=True
    )
    train(task, training, folder, seed=3, title="sd")
    return averages(task), losses(folder), training


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_an_interrupted_run_goes_on_to_the_bit(tiny_run, tiny_settings, straight, tmp_path):
    expected, expected_losses, training = straight
    task = make_task(tiny_run, tiny_settings, train_text=True)
    train_interrupted(task, training, tmp_path / "sd", "sd")
    # other first weights
    again = make_task(tiny_run, tiny_settings | {"seed": 4}, train_text=True)
    train(again, training, tmp_path / "sd", seed=3, title="sd")
    assert losses(tmp_path / "sd") == expected_losses
    assert all(torch.equal(a, b) for a, b in zip(averages(again), expected, strict=True))


@pytest.mark.parametrize(
    "changed", [{"zero_stage": 2, "micro_batch": 2}, {"zero_stage": 3}], ids=str
)
def test_partitions_and_accumulation_train_the_same(
    tiny_run, tiny_settings, straight, tmp_path, changed, monkeypatch
):
    # one rank alone would use no stage
    monkeypatch.setattr(engine, "zero_stage", lambda training: training.zero_stage)
    # stage 3 puts a linear layer of its own in torch's place, with other last bits
    monkeypatch.setattr(torch.nn.functional, "linear", torch.nn.functional.linear)
    _, expected, training = straight
    task = make_task(tiny_run, tiny_settings, train_text=True)
    train(task, training.model_copy(update=changed), tmp_path / "sd", seed=3, title="sd")
    assert losses(tmp_path / "sd") == pytest.approx(expected, rel=1e-4)
    task.export(tmp_path / "export")
    assert (
        draw(
            load_pipeline(tmp_path / "export"),
            ["left 90 degrees"],
            [1],
            steps=1,
            guidance=1.0,
            solver="ddim",
            resolution=32,
        ).std()
        > 0
    )


def test_fresh_noise_is_an_images_own(tiny_run):
    pipeline = load_pipeline(tiny_run.path("stable_diffusion", "export"))
    settings = {"steps": 3, "guidance": 1.0, "solver": "ddim", "resolution": 32}
    noisy = draw(pipeline, ["a hip"] * 2, [1, 2], eta=1.0, **settings)
    plain = draw(pipeline, ["a hip"] * 2, [1, 2], eta=0.0, **settings)
    assert (noisy != plain).any() and (
        plain == draw(pipeline, ["a hip"] * 2, [1, 2], **settings)
    ).all()
    alone = draw(pipeline, ["a hip"], [2], eta=1.0, **settings)
    assert abs(alone[0].astype(int) - noisy[1]).max() <= 1  # whatever is drawn beside it


@pytest.mark.parametrize("solver", ["ddim", "leapfrog"])
def test_latents_are_never_clipped_whatever_scheduler_a_base_has(solver):
    class Base:
        scheduler = PNDMScheduler(**SCHEDULE, skip_prk_steps=True)

        def __call__(self, prompts, **_):
            return SimpleNamespace(images=np.zeros((len(prompts), 8, 8, 3)))

    base = Base()
    draw(base, ["a"], [1], steps=2, guidance=1.0, solver=solver, resolution=8)
    config = base.scheduler.config
    assert not config.get("clip_sample") and not config.set_alpha_to_one
    assert config.steps_offset == 1 and config.beta_schedule == "scaled_linear"


def test_the_export_draws_at_the_size_of_the_views_whatever_its_base_has(
    run_of_another_size, tiny_settings, exported_size
):
    for shape in ("unet", "text"):
        tiny_settings["stable_diffusion"].pop(shape)
    run, base = run_of_another_size, run_of_another_size.path("stable_diffusion", "export")
    task = make_task(run, tiny_settings, pretrained=str(base), conditioning="caption")
    assert exported_size(task) == 32


class Reads103(torch.nn.Module):
    """A probe that reads 103 degrees in whatever it sees."""

    def angles(self, latents):
        return torch.full((len(latents), 2), 103.0)


def probed_task(run, settings, **section):
    settings["probe"] = {"training": settings["ruler"]["training"]}
    task = make_task(run, settings, measurement_weight=0.5, **section)
    task.measure_with(Reads103())
    return task


def test_a_dropped_caption_asks_for_no_angles(tiny_run, tiny_settings):
    task = probed_task(tiny_run, tiny_settings, caption_dropout=0.5)
    views = np.arange(40) % task.size
    batch = task.batch(views, ImageRandom(0, np.arange(40)))
    dropped = (batch["text"] == task.null).flatten(1).all(1)
    assert 5 < dropped.sum() < 35 and torch.equal(batch["asked"].isnan().all(1), dropped)
    films = np.stack([task.films.patient_left, task.films.patient_right], 1)
    assert np.allclose(batch["asked"][~dropped], films[views][~dropped])


def test_what_the_probe_reads_counts_less_the_more_noise_there_is(tiny_run, tiny_settings):
    task = probed_task(tiny_run, tiny_settings)
    batch = batch_of(task) | {"asked": torch.full((4, 2), 100.0)}
    batch["timesteps"] = torch.tensor([0, 250, 500, 999])
    with torch.no_grad():
        losses = task.module(**batch)[0]
        task.module.measured = None
        plain = task.module(**batch)[0]
    # 3 degrees off cost 3 - 1 on either side, see test_probe.py
    expected = 0.5 * 2.0 * scaled_linear_alphas_cumprod()[batch["timesteps"]].float()
    torch.testing.assert_close(losses - plain, expected, rtol=1e-3, atol=1e-4)


def test_a_loss_looks_where_its_weight_is(tiny_run, tiny_settings, losses_by_weight):
    task = make_task(tiny_run, tiny_settings)
    one, other, both = losses_by_weight(task, batch_of(task))
    assert not torch.allclose(one, other)
    torch.testing.assert_close((one + other) / 2, both)


def test_another_views_caption_comes_with_its_angles_and_moves_the_latents(tiny_run, tiny_settings):
    tiny_settings["data"] |= {"warp": 5.0}
    task = probed_task(tiny_run, tiny_settings, other_captions=0.5, caption_dropout=1e-9)
    task.others.choose = lambda indices, random: np.array([0, 2, 2, 0])
    batch = batch_of(task)
    assert torch.equal(batch["text"], task.texts[task.rows[[0, 2, 2, 0]]])
    assert torch.equal(batch["asked"], task.asked[[0, 2, 2, 0]])
    assert batch["moved"].tolist() == [False, True, False, True]
    assert torch.equal(batch["latents"], task.latents[:4])
    landmarks = torch.from_numpy(task.films.landmarks[:4])
    assert torch.equal(batch["weight"], hip_focus(landmarks, 16, 32, task.section.hip_weight))


def test_other_captions_begin_after_a_share_of_the_training(tiny_run, tiny_settings):
    tiny_settings["data"] |= {"warp": 5.0}
    task = probed_task(tiny_run, tiny_settings, other_captions=0.5, other_captions_from=0.75)
    assert task.others.first == 0.75 * task.section.training.images


def test_the_probe_reads_the_latents_that_are_predicted(tiny_run, tiny_settings):
    task = probed_task(tiny_run, tiny_settings)
    batch, seen = batch_of(task), []
    task.module.measured.probe.angles = lambda x0: seen.append(x0) or torch.full((4, 2), 103.0)
    with torch.no_grad():
        task.module(**batch)
        alphas, t = task.module.alphas_cumprod, batch["timesteps"]
        noisy = add_noise(batch["latents"], batch["noise"], t, alphas)
        output = task.module.denoise(noisy, t, batch["text"])
    expected = to_x0(output, noisy, t, alphas, task.section.prediction)
    torch.testing.assert_close(seen[0], expected.float())
