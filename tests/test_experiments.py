"""What the experiments of configs/ promise one another in their comments."""

from pathlib import Path

import pytest

from hpc_hipgen.config import LLCMS, load_experiment

CONFIGS = Path(__file__).parents[1] / "configs"


def experiment(name):
    return load_experiment(CONFIGS / f"{name}.yaml")


@pytest.mark.parametrize(
    "name", ["compare", "dall_e", "dreambooth", "lora", "ruler", "stable_diffusion", "unclip"]
)
def test_they_have_the_phantoms_and_the_ruler_of_the_demo(name):
    demo, other = experiment("llcm"), experiment(name)
    assert (other.seed, other.data, other.ruler) == (demo.seed, demo.data, demo.ruler)


@pytest.mark.parametrize("name", ["dreambooth", "lora", "stable_diffusion"])
def test_teachers_are_that_of_the_demo(name):
    demo, other = experiment("llcm"), experiment(name)
    more = ("reward_model", "feedback") if name == "stable_diffusion" else ()
    for model in ("autoencoder", "probe", "stable_diffusion", *more):
        assert getattr(other, model) == getattr(demo, model), model


def test_embeddings_are_decoded_to_latents_of_the_demos_autoencoder():
    assert experiment("unclip").autoencoder == experiment("llcm").autoencoder


@pytest.mark.parametrize("name", ["dall_e", "dreambooth", "lora", "unclip"])
def test_the_comparison_runs_the_sections_of_one_generator(name):
    whole, alone = experiment("compare"), experiment(name)
    own = {
        "lora": ["lora", "lcm_lora"],
        "dall_e": ["discrete_vae", "dall_e"],
        "unclip": ["clip", "prior", "unclip"],
    }.get(name, [name])
    for model in own:
        assert getattr(alone, model) == getattr(whole, model), model


def test_compared_students_differ_in_the_solver_alone():
    students = [getattr(experiment("compare"), name) for name in LLCMS]
    assert [student.solver for student in students] == ["leapfrog", "paper", "ddim"]
    assert len({student.model_dump_json(exclude={"solver"}) for student in students}) == 1
