"""What a run will need, against what is known of the networks."""

import json
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel

from hpc_hipgen.config import Training, load_experiment
from hpc_hipgen.performance.plan import Need, Plan, make_plan, unet_shape
from hpc_hipgen.performance.simulation import Cost, flop_counter, simulate
from jobs.plan import main

pytestmark = pytest.mark.slow

PAPER = "configs/llcm_a100.yaml"
# what is simulated takes as long as the network has layers
SMALL = "stable_diffusion.unet={block_out_channels: [64], attention: [true], layers_per_block: 1}"


@pytest.fixture(scope="module")
def paper():
    return make_plan(load_experiment(PAPER), "llcm")


def test_stable_diffusion_1_5_has_its_parameters_and_flops(paper):
    assert paper.parameters == 859_520_964 + 320 * 256  # and the guidance projection
    target = paper.flops["target network"]
    assert target == pytest.approx(0.803e12, rel=0.01)  # published: 401 GMAC at 64 x 64 latents
    assert paper.flops["teacher, with and without the caption"] == 2 * target
    assert paper.flops["network, forward and backward"] == pytest.approx(3 * target, rel=0.05)


def test_without_guidance_the_teacher_works_half_as_much():
    guided, alone = (
        make_plan(
            load_experiment(
                "configs/llcm.yaml", ["llcm.solver=ddim", f"llcm.guidance=[0,{most}]", SMALL]
            ),
            "llcm",
        )
        for most in (1, 0)
    )
    assert alone.flops["target network"] == alone.flops["teacher"]
    assert guided.flops["teacher, with and without the caption"] == 2 * alone.flops["teacher"]
    assert alone.frozen_peak[1] < guided.frozen_peak[1]


def test_zero_shares_out_what_it_says(paper):
    needs = {stage: paper.need(stage, ranks=8, images=32) for stage in (0, 1, 2, 3)}
    assert needs[0].moments == 8 * paper.parameters == 8 * needs[1].moments
    assert needs[1].gradients == 8 * needs[2].gradients
    assert needs[2].weights == 8 * needs[3].weights
    assert needs[3].activations == needs[0].activations > 10e9
    alone = paper.need(3, ranks=1, images=1)
    assert alone.weights == 4 * paper.parameters and alone.copies == 0


@pytest.mark.parametrize("precision, bytes_of_a_matrix", [("auto", 2), ("bf16", 2), ("fp32", 4)])
def test_a_teacher_is_stored_in_what_it_is_computed_in(paper, precision, bytes_of_a_matrix):
    training = paper.training.model_copy(update={"precision": precision})
    frozen = replace(paper, training=training).need(1, ranks=8, images=1).frozen
    averages = 4 * paper.parameters * (2 if training.ema_images else 1)
    others = paper.parameters - paper.matrices
    assert frozen == averages + bytes_of_a_matrix * paper.matrices + 4 * others


def plan_of(parameters=100, model="stable_diffusion", **training):
    """One whose figures are round."""
    return Plan(
        model=model,
        training=Training(images=7200, batch=8, lr=1e-3, **training),
        parameters=parameters,
        matrices=80,
        flops={"network": 2e12, "teacher": 1e12},
        costs={1: Cost(1, 50), 2: Cost(2, 70)},
        frozen_peak={1: 10, 2: 60} if model == "llcm" else {},
    )


@pytest.mark.parametrize(
    "activations, accumulates, beside", [(64, False, 64), (1, False, 2), (64, True, 66)]
)
def test_gradients_stand_beside_activations_only_where_they_wait(activations, accumulates, beside):
    need = Need(
        weights=100, gradients=2, moments=200, copies=300, frozen=400,
        activations=activations, accumulates=accumulates,
    )  # fmt: skip
    assert need.total == 1000 + beside


def test_with_zero_masters_and_two_small_buckets_are_copies_else_one_large_bucket():
    large = {stage: plan_of(10**9).need(stage, ranks=8, images=1).copies for stage in range(4)}
    shared = 2 * 4 * 50_000_000 + 4 * 10**9 // 8
    assert large == {0: 4 * 500_000_000, 1: shared, 2: shared, 3: shared}
    assert plan_of().need(0, ranks=8, images=1).copies == 4 * 100, "no more than there are"


@pytest.mark.parametrize(
    "model, training, moments, averages",
    [
        ("stable_diffusion", {"ema_images": 10}, 2, 1),
        ("stable_diffusion", {"optimizer": "muon"}, 1, 1),
        ("llcm", {}, 2, 1),
        ("llcm", {"ema_images": 10}, 2, 2),
    ],
)
def test_a_checkpoint_has_weights_moments_and_averages(model, training, moments, averages):
    plan = plan_of(model=model, **training)
    need = plan.need(0, ranks=1, images=1)
    assert plan.checkpoint_bytes == 400 * (1 + moments + averages)
    assert need.moments == 400 * moments
    teacher = 2 * 80 + 4 * 20 if model == "llcm" else 0
    assert need.frozen == 400 * averages + teacher


def test_muon_is_planned_without_zero():
    assert plan_of(optimizer="muon").stages == (0,)
    assert plan_of().stages == (0, 1, 2, 3)


def test_activations_are_those_of_the_network_that_has_more():
    student, alone = plan_of(model="llcm"), plan_of()
    assert [student.need(1, 8, images).activations for images in (1, 2, 5)] == [50, 70, 210]
    assert [alone.need(1, 8, images).activations for images in (1, 2, 5)] == [50, 70, 130]


def test_hours_are_those_of_all_parts_at_a_share_of_the_peak():
    # 7200 images of 3 TFLOP at 2 x 100 x 0.5 TFLOP/s: 216 seconds
    assert plan_of().hours(gpus=2, tflops=100, utilisation=0.5) == pytest.approx(216 / 3600)


def test_checkpointing_frees_activations_and_fp32_doubles_some():
    plain, checkpointed, fp32 = (
        make_plan(load_experiment("configs/llcm.yaml", [SMALL, more]), "stable_diffusion").costs[2]
        for more in (
            "seed=0",
            "stable_diffusion.gradient_checkpointing=true",
            "stable_diffusion.training.precision=fp32",
        )
    )
    assert checkpointed.peak < 0.9 * plain.peak and checkpointed.flops > plain.flops
    assert fp32.peak > 1.1 * plain.peak


def test_the_command_says_what_fits_and_how_long(capsys):
    assert main(["configs/llcm.yaml", SMALL, "--gpus", "1", "--images-per-second", "10"]) == 0
    said = capsys.readouterr().out
    assert "10,000 images on 1 GPUs" in said and "0.3 hours at 10 images/s" in said
    assert "leapfrog" not in said and said.count("at worst") == 2
    assert "5 checkpoints of 0.0 GB, one every 3.3 minutes of training" in said


def autoencoder(folder, levels):
    folder.mkdir(parents=True)
    settings = {"block_out_channels": [8] * levels, "latent_channels": 6}
    (folder / "config.json").write_text(json.dumps(settings))


def test_latents_are_those_of_the_autoencoder_that_is_taken(tmp_path):
    autoencoder(tmp_path / "alone", levels=3)
    autoencoder(tmp_path / "pipeline" / "vae", levels=2)
    found = [
        unet_shape(
            load_experiment("configs/llcm.yaml", [f"autoencoder={{pretrained: {folder}}}"]), "llcm"
        ).latent
        for folder in (tmp_path / "alone", tmp_path / "pipeline", "weights/not-there-yet")
    ]
    assert found == [(6, 32, 32), (6, 64, 64), (4, 16, 16)], "views have 128 pixels"


def test_a_student_of_another_teacher_has_its_shape(tmp_path, capsys):
    teachers = ("stable_diffusion", "stable_diffusion_caption", "feedback")
    settings = [f"{name}=null" for name in ("autoencoder", "probe", "reward_model", *teachers)]
    settings += ["llcm.measurement_weight=0", "llcm.other_captions=0", f"llcm.base={tmp_path}"]
    assert main(["configs/llcm.yaml", *settings]) == 2
    assert capsys.readouterr().err.startswith(f"error: llcm.base: {tmp_path} holds no unet/")
    teacher = make_unet()
    teacher.save_config(tmp_path / "unet")
    autoencoder(tmp_path / "vae", levels=4)
    plan = make_plan(load_experiment("configs/llcm.yaml", settings), "llcm")
    assert plan.parameters == sum(p.numel() for p in teacher.parameters()) + 32 * 256


def test_a_students_own_base_comes_before_that_of_feedback(tmp_path):
    teachers = ("stable_diffusion", "stable_diffusion_caption")
    off = [f"{name}=null" for name in ("autoencoder", "probe", *teachers)]
    wishes = ["llcm.measurement_weight=0", "llcm.other_captions=0"]
    bases = [f"llcm.base={tmp_path / 'own'}", f"feedback.base={tmp_path / 'tuned'}"]
    config = load_experiment("configs/llcm.yaml", [*off, *wishes, *bases])
    with pytest.raises(ValueError, match=r"^llcm\.base: \S+/own holds no unet"):
        unet_shape(config, "llcm")


def make_unet():
    return UNet2DConditionModel(
        in_channels=6, out_channels=6, block_out_channels=(32, 32), cross_attention_dim=768,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=4,
    )  # fmt: skip


@pytest.mark.parametrize("backward", [False, True])
def test_flops_are_those_of_torchs_counter(backward):
    """Which runs the network on tensors that have contents."""
    size, text = (1, 6, 8, 8), (1, 5, 768)
    made = simulate(
        make_unet,
        lambda: ((torch.ones(size), torch.ones(1), torch.ones(text)), {"return_dict": False}),
        backward=backward,
        bf16=True,
    )
    network = make_unet().requires_grad_(backward)
    with flop_counter() as counter:
        loss = network(torch.ones(size), torch.ones(1), torch.ones(text)).sample.square().mean()
        if backward:
            loss.backward()
    assert made.flops == counter.get_total_flops() > 1e6


def test_a_text_encoder_that_is_trained_is_counted():
    frozen, trained = (
        make_plan(
            load_experiment("configs/llcm.yaml", [f"stable_diffusion.train_text={train}", SMALL]),
            "stable_diffusion",
        )
        for train in ("false", "true")
    )
    part, whole = "network, forward and backward", trained.need(1, 8, 4)
    assert trained.flops[part] > frozen.flops[part]
    assert whole.moments - frozen.need(1, 8, 4).moments == trained.parameters - frozen.parameters
    shape = unet_shape(load_experiment("configs/llcm_a100_sane.yaml"), "stable_diffusion")
    with torch.device("meta"):
        assert sum(p.numel() for p in shape.encoder().parameters()) == 123_060_480


@pytest.mark.parametrize(
    "wrong",
    [
        ["configs/ruler.yaml"],
        [PAPER, "--utilisation", "2"],
        [PAPER, "--images-per-second", "0"],
    ],
)
def test_mistakes_are_one_line(capsys, wrong):
    assert main(wrong) == 2
    assert capsys.readouterr().err.count("\n") == 1
