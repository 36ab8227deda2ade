"""The benchmark's table; how fast anything is, no test says."""

import json
from types import SimpleNamespace

import pytest
import torch
import yaml

from hpc_hipgen import ROOT
from hpc_hipgen.performance import loading, measures, workspace
from hpc_hipgen.performance.simulation import flop_counter
from jobs.benchmark import EXPERIMENTS, main
from tests.conftest import TINY


@pytest.fixture
def tiny_file(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.mark.slow
def test_rows_are_measured_and_kept(tiny_file, tmp_path, capsys, monkeypatch):
    few = {"train": 6, "validation": 2, "test": 4, "views": 2}
    monkeypatch.setattr(workspace, "FILMS", few)
    monkeypatch.setattr(loading, "SCALED_VIEWS", 16)
    monkeypatch.setattr(loading, "SHARDS", (1, 4))
    monkeypatch.setattr(loading, "MANY_VIEWS", 40)
    monkeypatch.setattr(loading, "MANY_SHARDS", (2, 5))
    common = ["--config", str(tiny_file), "--repeats", "1", "--out", str(tmp_path), "--name", "pc"]
    assert main([*common, "--only", "training", "loader", "scale", "many"]) == 0
    assert main([*common, "--only", "sampling", "checkpoints", "--against", "diffusers"]) == 0
    content = json.loads((tmp_path / "pc.json").read_text())
    tables = {name: table["lines"] for name, table in content["tables"].items()}
    expected = {"training", "loader", "scale", "many", "sampling", "checkpoints"}
    assert set(tables) == expected | {"against diffusers"} and content["machine"]["torch"]
    trained = {line["model"]: line for line in tables["training"]}
    assert list(trained) == ["ruler", "autoencoder", "stable_diffusion", "llcm"]
    assert all(0 < line["in the networks"] < 1 for line in trained.values())
    assert [line["steps"] for line in tables["sampling"]] == [10, 20, 1, 2, 4]
    assert [(x["views"], x["shards"]) for x in tables["many"]] == [(40, 2), (40, 5)]
    (compared,) = tables["against diffusers"]
    assert compared["ratio"] > 0 and compared["solver"] == "leapfrog"
    page = (tmp_path / "pc.md").read_text()
    assert page.count("## ") == 7 and capsys.readouterr().out.endswith("pc.md\n")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_experiments_that_are_timed_can_be(name):
    config = workspace.shrunk(str(ROOT / "configs" / f"{name}.yaml"), [])
    assert config.data.train == workspace.FILMS["train"] and config.trained()


class Attending:
    """Trains 2 x 3 heads of 8 places and a width of 16, in a step of attention alone."""

    flops = 2 * 2 * (2 * 3 * 8 * 8 * 16)

    def __init__(self, *_):
        self.training, self.engine = SimpleNamespace(batch=2), SimpleNamespace(destroy=lambda: None)

    def step(self):
        q = torch.randn(2, 3, 8, 16, requires_grad=True)
        torch.nn.functional.scaled_dot_product_attention(q, q, q).sum().backward()


def test_attention_is_among_the_flops_of_a_step(monkeypatch):
    monkeypatch.setattr(measures, "Trained", Attending)
    monkeypatch.setattr(measures, "seconds_of", lambda step: step() or 1.0)
    run = SimpleNamespace(config=SimpleNamespace(name="x", trained=lambda: ["llcm"]))
    (line,) = measures.training(run, 1)
    # the backward pass makes the weights again, and two products of each
    assert line["TFLOP/s"] * 1e12 == pytest.approx(3.5 * Attending.flops)


def test_attention_by_xformers_is_counted():
    pytest.importorskip("xformers.ops")
    if not hasattr(torch.ops.xformers_flash, "flash_fwd"):
        pytest.skip("xformers has no flash attention here")
    flash = torch.ops.xformers_flash
    q = torch.empty(2, 8, 3, 16, device="meta")
    with flop_counter() as counter:
        rest = None, None, None, 8, 8, 0.0, 1.0, False, -1, -1, False, None
        out, lse, state = flash.flash_fwd(q, q, q, *rest)
        rest = out, lse, None, None, 8, 8, 0.0, 1.0, False, -1, -1, state
        flash.flash_bwd(False, q, q, q, q, *rest)
    assert counter.get_total_flops() == 3.5 * Attending.flops


MISTAKES = (
    ["llcm.skips=1"],
    ["--repeats", "0"],
    ["--run", "nowhere"],
    ["--config", "no.yaml"],
    ["--config", "configs/llcm_a100.yaml"],  # a batch of 1024 of a few films
)


@pytest.mark.parametrize("wrong", MISTAKES, ids=" ".join)
def test_mistakes_are_one_line(wrong, capsys):
    assert main(wrong) == 2
    assert capsys.readouterr().err.count("\n") == 1
