"""The student: it starts as its teacher, follows it, and samples in a stock pipeline."""

import json

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler

from hpc_hipgen.config import Training, parse_experiment
from hpc_hipgen.diffusion.consistency import GUIDANCE_WIDTH, guidance_embedding
from hpc_hipgen.generators.focus import hip_focus
from hpc_hipgen.generators.frozen import freeze
from hpc_hipgen.generators.llcm import LLCMTask, build_student, lcm_scheduler
from hpc_hipgen.generators.probe import MeasurementLoss
from hpc_hipgen.generators.sampling import load_pipeline
from hpc_hipgen.generators.stable_diffusion import load_parts
from hpc_hipgen.radiograph.layouts import read_manifest
from hpc_hipgen.training.clock import ImageRandom
from hpc_hipgen.training.engine import place
from hpc_hipgen.training.loop import train

STEPS = {"images": 8, "batch": 4, "lr": 1e-3}


def make_task(run, settings, **section):
    settings["llcm"] |= {"training": STEPS | {"precision": "fp32"}} | section
    config = parse_experiment(settings, "test")
    films = read_manifest(run.path("data"), "train")
    teacher, cache = run.path("stable_diffusion", "export"), run.path("latents")
    return LLCMTask(config, films, teacher, cache, "llcm")


def batch_of(task, n=4):
    return task.batch(np.arange(n), ImageRandom(0, np.arange(n)))


def copied(module):
    return [p.detach().clone() for p in module.parameters()]


def equal(before, module):
    return all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_the_student_starts_as_its_teacher(tiny_run):
    teacher = load_parts(tiny_run.path("stable_diffusion", "export")).unet
    student = build_student(teacher)
    z, states = torch.randn(3, 4, 16, 16), torch.randn(3, 9, 32)
    t = torch.tensor([19, 499, 999])
    with torch.no_grad():
        expected = teacher(z, t, states).sample
        for w in (0.0, 7.5):
            condition = guidance_embedding(torch.full((3,), w), GUIDANCE_WIDTH)
            assert torch.equal(student(z, t, states, timestep_cond=condition).sample, expected)
    assert student.config.time_cond_proj_dim == 256


@pytest.mark.parametrize("solver", ["paper", "leapfrog", "ddim"])
def test_every_solver_trains_the_student_alone(tiny_run, tiny_settings, tmp_path, solver):
    task = make_task(tiny_run, tiny_settings, solver=solver, ema_decay=0.5)
    teacher, target = task.module.frozen["teacher"], task.averages["target"].module
    assert task.module.frozen["target"] is target
    before, start = copied(teacher), copied(target)
    training = Training(images=8, batch=4, lr=1e-3, precision="fp32", log_images=4)
    train(task, training, tmp_path / "llcm", seed=3, title="llcm")
    lines = [json.loads(x) for x in (tmp_path / "llcm" / "metrics.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines] == [4, 8]
    assert all(0 < line["loss"] < 10 for line in lines)
    assert equal(before, teacher), "the teacher is not trained"
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(p.grad is None for p in target.parameters())
    assert not equal(start, task.module.student) and not equal(start, target)
    assert not equal(copied(target), task.module.student), "the target lags behind"


def test_a_teacher_in_bf16_says_what_autocast_would(tiny_run):
    teacher = place(load_parts(tiny_run.path("stable_diffusion", "export")).unet)
    inputs = torch.randn(3, 4, 16, 16), torch.tensor([19, 499, 999]), torch.randn(3, 9, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = teacher(*inputs).sample
        found = freeze(teacher, True)(*inputs).sample
    assert torch.equal(found, expected) and teacher.conv_in.weight.dtype == torch.bfloat16


def test_solvers_differ_but_for_the_papers_which_is_ddim(tiny_run, tiny_settings):
    found = {}
    for solver in ("paper", "leapfrog", "ddim"):
        task = make_task(tiny_run, tiny_settings, solver=solver)
        with torch.no_grad():
            found[solver] = task.module(**batch_of(task))[0]
    assert torch.equal(found["paper"], found["ddim"])
    assert not torch.equal(found["leapfrog"], found["ddim"])


def test_at_the_boundary_the_function_is_the_identity(tiny_run, tiny_settings):
    task = make_task(tiny_run, tiny_settings)
    inputs = batch_of(task)
    with torch.no_grad():
        found = task.module.consistency(
            task.module.student,
            inputs["latents"],
            torch.zeros(4, dtype=torch.int64),
            inputs["w"],
            inputs["states"],
        )
    assert torch.equal(found, inputs["latents"])


def test_batches_stay_on_the_grid_and_within_the_guidance(tiny_run, tiny_settings):
    task = make_task(tiny_run, tiny_settings, skip=25, guidance=[1.0, 3.0])
    batch = task.batch(np.zeros(300, int), ImageRandom(0, np.arange(300)))
    assert ((batch["t"] + 1) % 25 == 0).all() and len(batch["t"].unique()) == 40
    assert batch["w"].min() >= 1 and batch["w"].max() <= 3 and batch["w"].std() > 0.4
    one = task.batch(np.zeros(1, int), ImageRandom(0, np.array([7])))
    assert all(torch.equal(batch[name][7:8], one[name]) for name in one)


def test_without_guidance_the_teacher_sees_captions_alone(tiny_run, tiny_settings):
    guided = batch_of(make_task(tiny_run, tiny_settings))
    tiny_settings["sampling"] |= {"guidance": 1}
    task = make_task(tiny_run, tiny_settings, guidance=[0, 0])
    batch = batch_of(task)
    assert "null" in guided and "null" not in batch and not batch["w"].any()
    seen = []
    teacher = task.module.frozen["teacher"]
    teacher.register_forward_pre_hook(lambda network, inputs: seen.append(len(inputs[0])))
    with torch.no_grad():
        alone = task.module(**batch)[0]
        both = task.module(**batch, null=guided["null"])[0]
    assert seen == [4, 4, 8, 8], "two evaluations a jump of the leapfrog"
    assert torch.allclose(alone, both, rtol=1e-4)


def test_text_states_belong_to_their_captions(tiny_run, tiny_settings):
    from hpc_hipgen.generators import text

    task = make_task(tiny_run, tiny_settings)
    ids = text.token_ids(task.parts.tokenizer, task.films.captions[:4])
    with torch.no_grad():
        expected = task.parts.text_encoder(ids)[0]
    assert torch.allclose(batch_of(task)["states"], expected, atol=1e-5)
    assert len(task.states) == len(set(task.films.captions))


def test_captions_and_angles_are_those_of_the_chosen_views(tiny_run, tiny_settings):
    tiny_settings["data"] |= {"warp": 5.0}
    tiny_settings["probe"] = {"training": STEPS}
    task = make_task(tiny_run, tiny_settings, other_captions=0.5, measurement_weight=0.1)
    task.measure_with(AlwaysOff())
    task.others.choose = lambda indices, random: np.roll(indices, 1)
    batch = batch_of(task)
    assert torch.equal(batch["states"], task.states[task.rows[[3, 0, 1, 2]]])
    assert torch.equal(batch["asked"], task.asked[[3, 0, 1, 2]])
    assert torch.equal(batch["latents"], task.latents[:4])


def test_a_students_angles_count_at_every_noise_level(tiny_run, tiny_settings):
    task = make_task(tiny_run, tiny_settings)
    batch = batch_of(task) | {
        "asked": torch.full((4, 2), 100.0),
        "t": torch.tensor([19, 259, 499, 999]),
    }
    with torch.no_grad():
        plain = task.module(**batch)[0]
        task.module.measured = MeasurementLoss(AlwaysOff(), 0.5)
        losses = task.module(**batch)[0]
    # 3 degrees off cost 3 - 1 on either side, see test_probe.py
    assert torch.allclose(losses - plain, torch.full((4,), 0.5 * 2.0), atol=1e-4)


class AlwaysOff(torch.nn.Module):
    """A probe that reads 103 degrees."""

    def angles(self, latents):
        return torch.full((len(latents), 2), 103.0)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_the_scheduler_visits_timesteps_of_the_training_grid(steps):
    scheduler = lcm_scheduler("v_prediction", 20)
    scheduler.set_timesteps(steps)
    assert len(scheduler.timesteps) == steps and scheduler.timesteps[0] == 999
    assert ((scheduler.timesteps + 1) % 20 == 0).all()


def test_the_stock_pipeline_draws_what_was_stored(stock):
    drawn = stock.drawn["llcm_2"]
    assert str(stock.drawn["llcm_2_scheduler"]) == LCMScheduler.__name__
    for image, sample in zip(drawn, stock.stored["llcm_2"], strict=True):
        assert np.array_equal(image, sample.image), sample.key
    assert "steps_offset" not in stock.said, "diffusers finds nothing to warn of"


def test_a_skip_off_the_grid_is_refused(tiny_run, tiny_settings):
    with pytest.raises(ValueError, match="skip"):
        make_task(tiny_run, tiny_settings, skip=30)


def test_the_export_draws_at_the_size_of_the_views_whatever_its_base_has(
    run_of_another_size, tiny_settings, exported_size
):
    assert exported_size(make_task(run_of_another_size, tiny_settings)) == 32


def test_a_loss_looks_where_its_weight_is(tiny_run, tiny_settings, losses_by_weight):
    task = make_task(tiny_run, tiny_settings)
    one, other, both = losses_by_weight(task, batch_of(task))
    assert not torch.allclose(one, other)
    torch.testing.assert_close((one + other) / 2, both)


def test_the_target_answers_at_the_level_that_the_teacher_has_reached(tiny_run, tiny_settings):
    task = make_task(tiny_run, tiny_settings)
    batch, asked = batch_of(task), []
    own = task.module.consistency

    def note(unet, z, t, w, states):
        asked.append((unet, t))
        return own(unet, z, t, w, states)

    task.module.consistency = note
    with torch.no_grad():
        task.module(**batch)
    (target, t_next), (student, t) = asked
    assert target is task.averages["target"].module and student is task.module.student
    assert torch.equal(t, batch["t"]) and torch.equal(t_next, (batch["t"] - 20).clamp(min=0))


@pytest.mark.parametrize("ema_images", [0, 40])
def test_the_average_that_the_settings_name_is_exported(
    tiny_run, tiny_settings, tmp_path, ema_images
):
    task = make_task(tiny_run, tiny_settings, training=STEPS | {"ema_images": ema_images})
    for value, average in enumerate(task.averages.values()):
        torch.nn.init.constant_(average.module.conv_in.bias, value)
    task.export(tmp_path)
    found = load_parts(tmp_path).unet.conv_in.bias
    assert (found == (1 if ema_images else 0)).all()


def test_the_scheduler_has_the_grid_of_another_skip():
    scheduler = lcm_scheduler("v_prediction", 50)
    scheduler.set_timesteps(20)
    assert sorted(scheduler.timesteps.tolist()) == list(range(49, 1000, 50))


def test_the_probe_weighs_what_the_settings_say(tiny_run, tiny_settings):
    tiny_settings["probe"] = {"training": STEPS}
    task = make_task(tiny_run, tiny_settings, measurement_weight=0.25)
    task.measure_with(AlwaysOff())
    assert task.module.measured.weight == 0.25


def test_a_student_is_told_its_weight_as_a_pipeline_tells_the_scale_less_one(
    tiny_run, tiny_settings
):
    task = make_task(tiny_run, tiny_settings)
    batch, told = batch_of(task), []
    for unet in (task.module.student, task.module.frozen["target"]):
        unet.register_forward_pre_hook(
            lambda _, given, named: told.append(named["timestep_cond"]), with_kwargs=True
        )
    with torch.no_grad():
        task.module(**batch)
    pipeline = load_pipeline(tiny_run.path("llcm", "export"))
    expected = pipeline.get_guidance_scale_embedding(batch["w"], GUIDANCE_WIDTH)
    assert batch["w"].std() > 0 and len(told) == 2
    assert all(torch.allclose(found, expected, atol=1e-3) for found in told)


def test_a_teacher_is_guided_away_from_no_caption_by_the_weight(tiny_run, tiny_settings):
    task = make_task(tiny_run, tiny_settings)
    batch = batch_of(task)
    given = batch["latents"], batch["t"], batch["w"]
    with torch.no_grad():
        known, none = (
            task.module.teach(*given, batch[states], None) for states in ("states", "null")
        )
        found = task.module.teach(*given, batch["states"], batch["null"])
    scale = 1 + batch["w"][:, None, None, None]
    torch.testing.assert_close(found, none + scale * (known - none), rtol=1e-3, atol=1e-4)


def test_the_exported_scheduler_knows_what_the_student_predicts(tiny_run, tiny_settings, tmp_path):
    task = make_task(tiny_run, tiny_settings)
    task.export(tmp_path)
    assert load_pipeline(tmp_path).scheduler.config.prediction_type == "v_prediction"


def test_focus_and_target_are_as_the_section_has_them(tiny_run, tiny_settings):
    task = make_task(tiny_run, tiny_settings, ema_decay=0.75, hip_weight=2.0)
    assert task.averages["target"].decay == 0.75
    landmarks = torch.from_numpy(task.films.landmarks[:4])
    assert torch.equal(batch_of(task)["weight"], hip_focus(landmarks, 16, 32, 2.0))
