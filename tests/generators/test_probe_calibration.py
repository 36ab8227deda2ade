"""A student is asked for more where the probe reads too much in what its teacher draws."""

import pytest
import torch

from hpc_hipgen.config import parse_experiment
from hpc_hipgen.files import read_json, save_network
from hpc_hipgen.generators import probe_calibration
from hpc_hipgen.generators.probe import ProbeNetwork, asked_angles, load_probe
from hpc_hipgen.generators.probe_calibration import DRAWINGS, probe_error
from hpc_hipgen.generators.sampling import load_pipeline
from hpc_hipgen.run import Run
from hpc_hipgen.tasks import measured_task

STEPS = {"images": 8, "batch": 4, "lr": 1e-3, "precision": "fp32"}
FEEDBACK = {"steps": 3, "stops": 1, "below": 700, "eta": 0.5, "training": STEPS}
TOO_MUCH = torch.tensor([1.5, -0.25])


@pytest.fixture
def run(tiny_run, tiny_settings, tmp_path):
    """One with a probe, and the tiny teacher as if feedback had tuned it."""
    tiny_settings["llcm"] |= {"measurement_weight": 0.1}
    tiny_settings["probe"] = {"training": STEPS}
    tiny_settings["reward_model"] = {"training": STEPS}
    tiny_settings["feedback"] = FEEDBACK
    run = Run.create(tmp_path / "run", parse_experiment(tiny_settings, "x"))
    for name in ("data", "stages", "latents"):
        run.path(name).symlink_to(tiny_run.path(name))
    for name, of in (("feedback", "stable_diffusion"), ("reward_model", "ruler")):
        run.path(name).symlink_to(tiny_run.path(of))
    export = run.path("probe", "export")
    torch.manual_seed(0)
    network = ProbeNetwork(4, 16, 8)
    network.usual += torch.tensor([[40.0, 60], [40, 40], [80, 60], [80, 40]])
    save_network(network, export, "probe.json", network.shape)
    return run


class Right:
    """A reward model that reads less than the probe does, in most drawings by as much."""

    def __init__(self, probe):
        self.probe, self.seen = probe, []

    def __call__(self, autoencoder, network, bf16):
        return self

    def angles(self, latents):
        wild = 0.0 if self.seen else 90.0  # the first ones; a reading may be of no hip
        self.seen += [latents]
        return self.probe.angles(latents) - TOO_MUCH + wild


@pytest.fixture
def right(run, monkeypatch):
    right = Right(load_probe(run.path("probe", "export")))
    monkeypatch.setattr(probe_calibration, "Reward", right)
    return right


def test_the_student_is_asked_for_what_the_probe_reads_too_much(run, right):
    task = measured_task(run, "llcm")
    assert torch.allclose(task.asked, asked_angles(task.films) + TOO_MUCH, atol=1e-4)
    drawn = sum(map(len, right.seen))
    assert drawn == min(DRAWINGS, len(task.films)) > 2 * run.config.sampling.batch


def test_it_is_read_in_what_the_teacher_draws_in_feedback(run, right):
    captions = ["a", "b", "c"]
    probe_error(run, "llcm", right.probe, captions)
    order = probe_calibration.chosen(run, 3)
    pipeline = load_pipeline(run.path("feedback", "export"))
    expected = pipeline(
        [captions[i] for i in order],
        num_inference_steps=3, eta=0.5, guidance_scale=1, height=32, width=32,
        generator=[torch.Generator().manual_seed(i) for i in order], output_type="latent",
    ).images  # fmt: skip
    assert torch.allclose(torch.cat(right.seen), expected, atol=1e-4)


def test_it_is_measured_once(run, right, monkeypatch):
    first = probe_error(run, "llcm", right.probe, ["a"] * 3)
    monkeypatch.setattr(probe_calibration, "load_pipeline", None)
    assert torch.equal(probe_error(run, "llcm", right.probe, ["a"] * 3), first)
    assert read_json(run.path("llcm", "probe_error.json")).keys() == {"left", "right"}


def test_a_student_that_goes_on_keeps_what_was_measured(run, right):
    first = probe_error(run, "llcm", right.probe, ["a"] * 3)
    run.path("llcm", "checkpoints", "0000000004").mkdir(parents=True)
    assert first.any() and torch.equal(probe_error(run, "llcm", right.probe, ["a"] * 3), first)


def test_drawings_are_of_views_from_everywhere(run):
    order = probe_calibration.chosen(run, 1000)
    assert len(set(order)) == DRAWINGS and order == probe_calibration.chosen(run, 1000)
    assert min(order) < 200 and max(order) >= 800


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_real_reward_model_reads_what_is_drawn(run, tiny_settings, tmp_path, precision):
    tiny_settings["sampling"]["precision"] = precision
    other = Run.create(tmp_path / precision, parse_experiment(tiny_settings, "x"))
    for name in ("feedback", "reward_model"):
        other.path(name).symlink_to(run.path(name))
    probe = load_probe(run.path("probe", "export"))
    found = probe_error(other, "llcm", probe, ["a", "b", "c", "d"])
    assert found.isfinite().all() and found.abs().max() < 180


def test_a_teacher_that_draws_nothing_is_said(run, right, monkeypatch):
    monkeypatch.setattr(right, "angles", lambda latents: torch.full((len(latents), 2), torch.nan))
    with pytest.raises(ValueError, match=r"feedback/export: what it draws .* no picture"):
        probe_error(run, "llcm", right.probe, ["a"])
    assert not run.path("llcm", "probe_error.json").exists()


def test_a_student_that_began_without_goes_on_so(run, right):
    run.path("llcm", "checkpoints", "0000000004").mkdir(parents=True)
    assert not probe_error(run, "llcm", right.probe, ["a"]).any() and not right.seen


def test_without_a_reward_model_the_probe_is_believed(run, tiny_settings, tmp_path):
    del tiny_settings["reward_model"], tiny_settings["feedback"]
    alone = Run.create(tmp_path / "alone", parse_experiment(tiny_settings, "x"))
    for name in ("data", "stages", "latents", "probe"):
        alone.path(name).symlink_to(run.path(name))
    alone.path("stable_diffusion").symlink_to(run.path("feedback"))
    task = measured_task(alone, "llcm")
    assert torch.equal(task.asked, asked_angles(task.films))
