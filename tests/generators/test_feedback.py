"""Feedback: it draws as a stock pipeline does, a ruler reads it, and the UNet follows."""

import shutil

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from interrupted import train_interrupted
from torch.nn import functional as F

from hpc_hipgen import tasks
from hpc_hipgen.config import SCHEDULE, Feedback, Training, parse_experiment
from hpc_hipgen.diffusion.schedule import to_x0
from hpc_hipgen.generators.autoencoder import encode, round_trip
from hpc_hipgen.generators.feedback import SNR_LIMIT, FeedbackTask
from hpc_hipgen.generators.sampling import SCHEDULERS, load_pipeline
from hpc_hipgen.radiograph.captions import parse_caption
from hpc_hipgen.radiograph.layouts import read_manifest
from hpc_hipgen.rulers.ruler import (
    check_independent,
    norberg_angles,
    read_points,
    ruler_of,
    standardise,
)
from hpc_hipgen.run import Run
from hpc_hipgen.training.clock import ImageRandom
from hpc_hipgen.training.loop import train

STEPS = {"images": 8, "batch": 4, "lr": 1e-3, "precision": "fp32"}


def make_task(run, tree, **section):
    tree["reward_model"] = tree["ruler"]
    tree["feedback"] = {"steps": 5, "stops": 2, "below": 700, "training": STEPS} | section
    films = read_manifest(run.path("data"), "train")
    base, ruler = run.path("stable_diffusion", "export"), run.path("ruler", "export")
    return FeedbackTask(parse_experiment(tree, "test"), films, base, ruler)


@pytest.mark.parametrize("same", [True, False])
def test_a_ruler_that_measures_is_not_asked_whatever_its_folder_is_called(
    tiny_run, tiny_settings, tmp_path, same
):
    other = shutil.copytree(tiny_run.path("ruler", "export"), tmp_path / "other")
    if not same:
        with (other / "model.safetensors").open("ab") as file:
            file.write(b" ")
    tiny_settings["feedback"] = {"training": STEPS}
    tiny_settings["reward_model"] = {"pretrained": str(other)}
    run = Run.create(tmp_path / "run", parse_experiment(tiny_settings, "x"))
    check_independent(run)  # the own one is still to be trained
    shutil.copytree(tiny_run.path("ruler", "export"), run.path("ruler", "export"))
    if not same:
        check_independent(run)
        return
    for use in (lambda: tasks.feedback(run, "feedback"), lambda: ruler_of(run, "cpu")):
        with pytest.raises(ValueError, match="must be measured by another"):
            use()


def batch_of(task, n=4):
    return task.batch(np.arange(n), ImageRandom(0, np.arange(n)))


class MeanReward:
    """Reads both angles off the mean of the latents."""

    def angles(self, latents):
        mean = latents.flatten(1).mean(1)
        return torch.stack([100 + 20 * mean, 100 - 20 * mean], 1)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_it_draws_what_a_stock_pipeline_draws(tiny_run, tiny_settings, eta):
    task = make_task(tiny_run, tiny_settings, eta=eta)
    captions = task.films.captions[:3]
    pipeline = load_pipeline(tiny_run.path("stable_diffusion", "export"))
    pipeline.scheduler = SCHEDULERS["ddim"].from_config(pipeline.scheduler.config)
    seen = []

    def keep(_, step, timestep, state):
        seen.append(state["latents"].clone())
        return state

    pipeline(
        captions, num_inference_steps=5, guidance_scale=1.0, eta=eta, height=32, width=32,
        generator=[torch.Generator().manual_seed(seed) for seed in range(3)],
        output_type="latent", callback_on_step_end=keep,
    )  # fmt: skip
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    draws = [
        torch.stack([torch.randn(4, 16, 16, generator=g) for _ in range(6)]) for g in generators
    ]
    numbers = torch.stack(draws)
    found = task.module.draw(numbers[:, 0], numbers[:, 1:], task.states[task.rows[:3]])
    assert torch.equal(found[:, 0], numbers[:, 0])
    torch.testing.assert_close(found[:, 1:], torch.stack(seen[:4], 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("below", [1, 2, 41, 400, 1000])
@pytest.mark.parametrize("steps", [1, 7, 25])
def test_late_steps_are_those_of_the_scheduler(steps, below):
    section = Feedback.model_construct(steps=steps, below=below)
    scheduler = DDIMScheduler(**SCHEDULE, steps_offset=1)
    scheduler.set_timesteps(steps)
    assert section.late_steps == tuple(np.flatnonzero(scheduler.timesteps.numpy() <= below))


def test_drawings_stop_at_different_late_steps(tiny_run, tiny_settings):
    task = make_task(tiny_run, tiny_settings, steps=20, stops=3)
    stops = task.batch(np.arange(4).repeat(50), ImageRandom(0, np.arange(200)))["stops"]
    assert all(len(set(row)) == 3 for row in stops.tolist())
    assert set(stops.flatten().tolist()) == set(task.section.late_steps)
    assert (task.module.steps_at(stops) <= 700).all()


def test_a_drawing_is_its_images_own(tiny_run, tiny_settings):
    task = make_task(tiny_run, tiny_settings)
    whole, alone = batch_of(task), task.batch(np.array([2]), ImageRandom(0, np.array([2])))
    assert all(torch.equal(whole[name][2:3], alone[name]) for name in alone)
    said = [parse_caption(caption) for caption in task.films.captions[:4]]
    assert whole["asked"].tolist() == [[a.patient_left, a.patient_right] for a in said]
    mixed = task.batch(np.array([5, 0]), ImageRandom(0, np.arange(2)))
    assert torch.equal(mixed["states"], task.states[task.rows[[5, 0]]])


def test_the_reward_reads_what_the_ruler_reads_in_the_decoded_view(tiny_run, tiny_settings):
    task = make_task(tiny_run, tiny_settings)
    reward, images = task.module.reward, task.films.images[:4]
    latents = encode(reward.autoencoder, images)
    stored = torch.from_numpy(round_trip(reward.autoencoder, images)).float()[:, None]
    with torch.no_grad():
        views = reward.views(latents)
        assert (views - stored).abs().max() < 0.51, "stored views are whole grey levels"
        points, _, _ = read_points(*reward.network(standardise(views)))
        assert torch.equal(reward.angles(latents), norberg_angles(points).flip(1))


def test_the_loss_is_that_of_the_predictions_at_the_stops(tiny_run, tiny_settings):
    task = make_task(tiny_run, tiny_settings, weight=0.3, anchor=2.0)
    module, batch = task.module, batch_of(task)
    module.reward = MeanReward()
    with torch.no_grad():
        for parameter in module.frozen["reference"].parameters():
            parameter.mul_(1.1)
        losses, scalars = module(**batch)
        seen = module.draw(batch["noise"], batch["renewed"], batch["states"])
        expected, changes = torch.zeros(4), []
        for i in range(4):
            for stop in batch["stops"][i].tolist():
                t = module.scheduler.timesteps[stop][None]
                z, text = seen[i : i + 1, stop], batch["states"][i : i + 1]
                found, before = (
                    to_x0(unet(z, t, text).sample, z, t, module.alphas_cumprod, module.prediction)
                    for unet in (module.unet, module.frozen["reference"])
                )
                off = MeanReward().angles(found)[0] - batch["asked"][i]
                wrong = F.smooth_l1_loss(off, torch.zeros(2), beta=2.0)
                abar = module.alphas_cumprod[t].item()
                changes.append((found - before).square().mean())
                change = min(abar / (1 - abar), SNR_LIMIT) * changes[-1]
                expected[i] += (0.3 * wrong + 2.0 * change) / 2
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scalars["change"], torch.stack(changes).mean(), rtol=1e-4, atol=1e-6)


def test_what_is_not_changed_costs_nothing_and_the_unet_alone_learns(tiny_run, tiny_settings):
    task = make_task(tiny_run, tiny_settings, weight=1e-9)
    losses, scalars = task.module(**batch_of(task))
    assert scalars["change"] == 0 and losses.max() < 1e-5
    losses.mean().backward()
    assert all(p.grad is not None for p in task.module.unet.parameters() if p.requires_grad)
    assert task.module.unet is task.parts.unet
    trained = dict(task.module.named_parameters())
    assert all(name.startswith("unet.") for name in trained)
    frozen = (task.module.frozen["reference"], task.module.reward.autoencoder)
    assert not any(p.requires_grad for network in frozen for p in network.parameters())


@pytest.mark.slow
def test_drawings_come_to_show_what_is_asked_for(tiny_run, tiny_settings, tmp_path):
    task = make_task(tiny_run, tiny_settings, anchor=0.0, weight=1.0)
    task.module.reward = MeanReward()
    task.asked = torch.tensor([[112.0, 88.0]]).expand(task.size, 2)
    with torch.no_grad():
        before = task.module(**batch_of(task, 8))[1]["degrees"]
    training = Training(**STEPS | {"images": 160, "batch": 8, "lr": 3e-3})
    train(task, training, tmp_path, seed=3, title="feedback")
    with torch.no_grad():
        after = task.module(**batch_of(task, 8))[1]["degrees"]
    assert after < 0.5 * before


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_all_weights_learn_from_what_was_drawn(tiny_run, tiny_settings, tmp_path, precision):
    task = make_task(tiny_run, tiny_settings)
    before = {n: p.detach().clone() for n, p in task.module.unet.named_parameters()}
    train(task, Training(**STEPS | {"precision": precision}), tmp_path, seed=3, title="feedback")
    kept = [n for n, p in task.module.unet.named_parameters() if torch.equal(p, before[n])]
    assert not kept


def test_an_interrupted_run_goes_on_to_the_bit(tiny_run, tiny_settings, tmp_path):
    training = Training(**STEPS | {"images": 12, "ema_images": 8, "deterministic": True})
    straight = make_task(tiny_run, tiny_settings)
    train(straight, training, tmp_path / "straight", seed=3, title="feedback")
    stopped = make_task(tiny_run, tiny_settings)
    train_interrupted(stopped, training, tmp_path / "again", "feedback")
    again = make_task(tiny_run, tiny_settings)
    train(again, training, tmp_path / "again", seed=3, title="feedback")
    both = zip(again.parts.unet.parameters(), straight.parts.unet.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in both)


def test_the_export_draws_as_the_average_does(tiny_run, tiny_settings, tmp_path):
    task = make_task(tiny_run, tiny_settings)
    train(task, Training(**STEPS), tmp_path / "run", seed=3, title="feedback")
    task.export(tmp_path / "export")
    pipeline = load_pipeline(tmp_path / "export")
    trained = task.averages["export"].module.state_dict()
    assert all(torch.equal(v, trained[k]) for k, v in pipeline.unet.state_dict().items())
    base = load_pipeline(tiny_run.path("stable_diffusion", "export"))
    kinds = [p.scheduler.config.prediction_type for p in (base, pipeline)]
    assert kinds[0] == kinds[1] == "v_prediction"
    for name in ("vae", "text_encoder"):
        before, after = (getattr(p, name).state_dict() for p in (base, pipeline))
        assert all(torch.equal(v, after[k]) for k, v in before.items()), name
    assert any(not torch.equal(v, trained[k]) for k, v in base.unet.state_dict().items())


def test_the_export_draws_at_the_size_of_the_views_whatever_its_base_has(
    run_of_another_size, tiny_settings, exported_size
):
    assert exported_size(make_task(run_of_another_size, tiny_settings)) == 32
