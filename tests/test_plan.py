"""What a run will need, against what is known of the networks."""

import pytest

from hpc_hipgen.config import load_experiment
from hpc_hipgen.performance.plan import make_plan
from jobs.plan import main

PAPER = "configs/llcm_a100.yaml"


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
    settings = ["llcm.solver=ddim", "sampling.guidance=1"]
    guided = make_plan(load_experiment("configs/llcm.yaml", settings), "llcm")
    alone = make_plan(
        load_experiment("configs/llcm.yaml", [*settings, "llcm.guidance=[0,0]"]), "llcm"
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


def test_the_command_says_what_fits_and_how_long(capsys):
    assert main(["configs/llcm.yaml", "--gpus", "1", "--images-per-second", "10"]) == 0
    said = capsys.readouterr().out
    assert "18,000 images on 1 GPUs" in said and "0.5 hours at 10 images/s" in said
    assert "leapfrog" not in said and said.count("at worst") == 2


@pytest.mark.parametrize("wrong", [["configs/ruler.yaml"], [PAPER, "--utilisation", "2"]])
def test_mistakes_are_one_line(capsys, wrong):
    assert main(wrong) == 2
    assert capsys.readouterr().err.count("\n") == 1
