"""Who runs beside whom on one machine."""

from hypothesis import given
from hypothesis import strategies as st

from hpc_hipgen import ROOT
from hpc_hipgen.cluster.turns import turns
from hpc_hipgen.config import load_experiment
from hpc_hipgen.pipeline import Stage, stages


def names(graph):
    return [[stage.name.removeprefix("train-") for stage in turn] for turn in turns(graph)]


def test_turns_of_the_demo():
    assert names(stages(load_experiment(ROOT / "configs" / "llcm.yaml"))) == [
        ["prepare"],
        ["autoencoder", "reward_model", "ruler"],  # what most waits for begins first
        ["probe"],
        ["stable_diffusion"],
        ["feedback"],
        ["stable_diffusion_caption", "llcm"],  # not the first of them beside the probe
        ["sample"],
        ["evaluate"],
        ["report"],
    ]


def test_generators_of_a_comparison_are_trained_side_by_side():
    found = names(stages(load_experiment(ROOT / "configs" / "compare.yaml")))
    together = next(turn for turn in found if "llcm" in turn)
    assert {"dall_e", "unclip", "lora", "lcm_lora", "dreambooth"} < set(together)
    assert ["stable_diffusion"] in found


@st.composite
def graphs(draw):
    """Stages, each after some that come before it or are of another graph."""
    graph = []
    for k in range(draw(st.integers(0, 9))):
        before = [stage.name for stage in graph] + ["elsewhere"]
        after = tuple(draw(st.sets(st.sampled_from(before))))
        graph.append(Stage(f"s{k}", "", "cpu", after, model=draw(st.sampled_from([None, "m"]))))
    return graph


@given(graphs())
def test_each_stage_comes_once_after_all_that_it_waits_for(graph):
    done = {"elsewhere"}
    for turn in turns(graph):
        assert turn and all(set(stage.after) <= done for stage in turn)
        done |= {stage.name for stage in turn}
    assert done == {"elsewhere"} | {stage.name for stage in graph}
    assert sum(map(len, turns(graph))) == len(graph)
