"""Adapters: they start as the base, are all that is trained, and load in a stock pipeline."""

import json

import numpy as np
import pytest
import torch
from interrupted import train_interrupted
from safetensors.torch import load_file
from stock_pipelines import asked_of_stock

from hpc_hipgen.config import Training, parse_experiment
from hpc_hipgen.evaluation.samples import read_samples
from hpc_hipgen.generators.lora import (
    AdapterAverage,
    LCMLoRATask,
    LoRATask,
    adapter_list,
    adapter_parameters,
)
from hpc_hipgen.generators.sampling import load_average, load_pipeline
from hpc_hipgen.generators.stable_diffusion import load_parts
from hpc_hipgen.radiograph.layouts import read_manifest
from hpc_hipgen.run import Run
from hpc_hipgen.training.checkpoint_files import AVERAGES, STATE
from hpc_hipgen.training.clock import ImageRandom
from hpc_hipgen.training.loop import train
from jobs import prepare, sample
from jobs.train import train as train_stage

STEPS = {"images": 8, "batch": 4, "lr": 1e-2}
TASKS = {"lora": LoRATask, "lcm_lora": LCMLoRATask}
STOCK = """
import json, sys
import numpy as np, torch
from diffusers import LCMScheduler, StableDiffusionPipeline

found = {}
for name, (base, adapters, prompts, seeds, settings) in json.loads(sys.argv[1]).items():
    pipeline = StableDiffusionPipeline.from_pretrained(base)
    pipeline.load_lora_weights(adapters)
    if name == "lcm_lora":
        pipeline.scheduler = LCMScheduler.from_pretrained(adapters + "/scheduler")
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    images = pipeline(prompts, generator=generators, height=32, width=32, output_type="np",
                      **settings).images
    found[name] = np.rint(images.mean(-1) * 255).astype(np.uint8)
assert not [m for m in sys.modules if m.split(".")[0] in ("hpc_hipgen", "jobs")]
np.savez(sys.argv[2], **found)
"""


def adapted(tree):
    """The tiny settings with both kinds of adapters."""
    tree["lora"] = {"rank": 2, "training": STEPS | {"ema_images": 8}}
    tree["lcm_lora"] = {"rank": 2, "training": STEPS}
    return tree


def make_task(name, run, settings, **section):
    adapted(settings)[name] |= {"training": STEPS | {"precision": "fp32"}} | section
    config = parse_experiment(settings, "test")
    films = read_manifest(run.path("data"), "train")
    return TASKS[name](config, films, run.path("stable_diffusion", "export"), run.path("latents"))


def unet_of(task):
    return task.module.student if isinstance(task, LCMLoRATask) else task.parts.unet


def batch_of(task, n=4):
    return task.batch(np.arange(n), ImageRandom(0, np.arange(n)))


def inputs_of_a_unet():
    torch.manual_seed(0)
    return torch.randn(2, 4, 16, 16), torch.tensor([19, 999]), torch.randn(2, 64, 32)


@pytest.mark.parametrize("layers", ["attention", "all"])
@pytest.mark.parametrize("name", TASKS)
def test_adapters_start_as_the_base(tiny_run, tiny_settings, name, layers):
    task = make_task(name, tiny_run, tiny_settings, layers=layers)
    base = load_parts(tiny_run.path("stable_diffusion", "export")).unet
    with torch.no_grad():
        found, expected = (u(*inputs_of_a_unet()).sample for u in (unet_of(task), base))
    assert torch.equal(found, expected)
    names = [n for n, _ in adapter_parameters(unet_of(task))]
    assert names == [n for n, p in unet_of(task).named_parameters() if p.requires_grad]
    assert any("conv1" in n for n in names) == (layers == "all")
    assert any("add_embedding" in n for n in names) == (layers == "all")


@pytest.mark.parametrize("name", TASKS)
def test_only_adapters_are_trained(tiny_run, tiny_settings, tmp_path, name):
    task = make_task(name, tiny_run, tiny_settings)
    before = {n: p.detach().clone() for n, p in unet_of(task).named_parameters()}
    training = Training(**STEPS | {"precision": "fp32", "log_images": 4})
    train(task, training, tmp_path / name, seed=3, title=name)
    adapters = dict(adapter_parameters(unet_of(task)))
    assert len(adapters) == len(before) - len(
        list(load_parts(tiny_run.path("stable_diffusion", "export")).unet.parameters())
    )
    for n, p in unet_of(task).named_parameters():
        assert torch.equal(p, before[n]) == (n not in adapters), n
    lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["images"] for line in lines] == [4, 8]


@pytest.mark.parametrize("name", TASKS)
def test_an_interrupted_run_goes_on_to_the_bit(tiny_run, tiny_settings, tmp_path, name):
    settings = {"images": 12, "precision": "fp32", "ema_images": 8, "deterministic": True}
    training = Training(**STEPS | settings)
    straight = make_task(name, tiny_run, tiny_settings)
    train(straight, training, tmp_path / "straight", seed=3, title=name)
    stopped = make_task(name, tiny_run, tiny_settings)
    train_interrupted(stopped, training, tmp_path / "again", name)
    again = make_task(name, tiny_run, tiny_settings | {"seed": 4})  # other first adapters
    train(again, training, tmp_path / "again", seed=3, title=name)
    for average in straight.averages:
        modules = [task.averages[average].module for task in (straight, again)]
        both = zip(*(module.parameters() for module in modules), strict=True)
        assert all(torch.equal(a, b) for a, b in both), average


def test_the_average_of_a_lora_has_the_size_of_its_adapters(tiny_run, tiny_settings):
    task = make_task("lora", tiny_run, tiny_settings)
    average = sum(p.numel() for p in task.averages["export"].module.parameters())
    assert average == sum(p.numel() for _, p in adapter_parameters(task.parts.unet))


def test_checkpoints_of_adapters_hold_adapters_alone(tiny_run, tiny_settings, tmp_path):
    """A base of gigabytes is read where it lies; gone on with beside another one is an error."""
    for name in TASKS:
        task = make_task(name, tiny_run, tiny_settings)
        train(task, Training(**STEPS | {"precision": "fp32"}), tmp_path / name, seed=3, title=name)
        adapters = sum(p.numel() for _, p in adapter_parameters(unet_of(task)))
        (path,) = (tmp_path / name / "checkpoints").iterdir()
        state = torch.load(path / STATE, weights_only=True)
        averages = torch.load(path / AVERAGES, weights_only=True)
        for weights in (state["weights"], *(kept["module"] for kept in averages.values())):
            assert sum(weight.numel() for weight in weights.values()) == adapters
        another = make_task(name, tiny_run, tiny_settings)
        with torch.no_grad():
            next(unet_of(another).parameters()).view(-1)[0] += 1
        with pytest.raises(ValueError, match="of the base has changed since"):
            train(another, Training(**STEPS), tmp_path / name, seed=3, title=name)


def test_the_exported_average_of_an_lcm_lora_is_of_its_adapters(tiny_run, tiny_settings, tmp_path):
    """Beside the target, a whole UNet, which the loss asks; sweeps load either."""
    section = {"training": STEPS | {"precision": "fp32", "ema_images": 8}}
    task = make_task("lcm_lora", tiny_run, tiny_settings, **section)
    assert isinstance(task.averages["export"].module, torch.nn.ParameterList)
    train(task, Training(**section["training"]), tmp_path / "lcm_lora", seed=3, title="lcm_lora")
    task.export(tmp_path / "export")
    base = tiny_run.path("stable_diffusion", "export")
    pipeline = load_pipeline(base, "fp32", tmp_path / "export")
    kept = list(task.averages["export"].module)
    found = [weight for _, weight in adapter_parameters(pipeline.unet)]
    assert all(torch.equal(a, b) for a, b in zip(kept, found, strict=True))
    with torch.no_grad():
        for weight in found:
            weight.zero_()
    load_average(pipeline, tmp_path / "lcm_lora" / "checkpoints" / "0000000008")
    assert all(torch.equal(a, b) for a, b in zip(kept, found, strict=True))
    # of before: that of a whole UNet, by its names
    with torch.no_grad():
        for weight, adapter in zip(kept, adapter_list(pipeline.unet), strict=True):
            weight.copy_(adapter)
    former = {"steps": 2, "module": pipeline.unet.state_dict()}
    other = AdapterAverage(adapter_list(task.module.student), 0.5)
    other.load_state_dict(former)
    assert all(torch.equal(a, b) for a, b in zip(kept, other.module, strict=True))


def test_an_lcm_lora_distils_one_guidance_weight(tiny_run, tiny_settings):
    task = make_task("lcm_lora", tiny_run, tiny_settings, guidance=1.5)
    assert (batch_of(task)["w"] == 1.5).all()
    assert task.module.student.config.time_cond_proj_dim is None


@pytest.fixture(scope="module")
def lora_run(tiny_run, tmp_path_factory):
    """A run of adapters on the base of `tiny_run`, through the stages, up to its samples."""
    base = str(tiny_run.path("stable_diffusion", "export"))
    tree = adapted(tiny_run.config.model_dump(mode="json", exclude_unset=True))
    for name in ("stable_diffusion", "autoencoder", "llcm"):
        del tree[name]
    for name in TASKS:
        tree[name]["base"] = base
    tree["ruler"]["pretrained"] = str(tiny_run.path("ruler", "export"))
    run = Run.create(tmp_path_factory.mktemp("lora") / "run", parse_experiment(tree, "lora"))
    prepare.prepare(run)
    assert run.config.trained() == ["lora", "lcm_lora"]
    for model in run.config.trained():
        train_stage(run, model)
    sample.sample_items(run, [("lora", 0), ("lcm_lora_2", 0)])
    return run


@pytest.mark.slow
def test_a_run_of_adapters_alone(lora_run, tiny_run):
    assert lora_run.rows() == ["ruler", "lora", "lcm_lora_1", "lcm_lora_2"]
    for row, guidance in (("lora", 3.0), ("lcm_lora_2", 1.0)):
        found = read_samples(lora_run.path("samples", row, "shard-00000.tar"))
        assert len(found) == 4 and found[0].info["guidance"] == guidance
        assert found[0].info["steps"] == 2
    base = read_samples(tiny_run.path("samples", "stable_diffusion", "shard-00000.tar"))
    drawn = read_samples(lora_run.path("samples", "lora", "shard-00000.tar"))
    assert base[0].info["seed"] == drawn[0].info["seed"]
    assert not np.array_equal(base[0].image, drawn[0].image), "the adapters are in use"


@pytest.mark.slow
def test_the_stock_pipeline_loads_the_adapters_and_draws_what_was_stored(lora_run, stock_process):
    asked, stored = {}, {}
    for row, model in (("lora", "lora"), ("lcm_lora_2", "lcm_lora")):
        samples = read_samples(lora_run.path("samples", row, "shard-00000.tar"))[:3]
        stored[model] = [sample.image for sample in samples]
        folders = [str(lora_run.base(model)), str(lora_run.path(model, "export"))]
        asked[model] = [*folders, *asked_of_stock(samples)]
    drawn, _ = stock_process(STOCK, asked)
    for model, images in stored.items():
        assert np.array_equal(drawn[model], images), model


@pytest.mark.parametrize("layers", ["attention", "all"])
@pytest.mark.parametrize("name", TASKS)
def test_what_is_loaded_is_the_average(tiny_run, tiny_settings, tmp_path, name, layers):
    """Every adapter arrives: one that a loader leaves out gives no error."""
    task = make_task(name, tiny_run, tiny_settings, layers=layers)
    training = Training(**STEPS | {"precision": "fp32", "ema_images": 8, "checkpoint_images": 4})
    train(task, training, tmp_path / name, seed=3, title=name)
    figures = task.export(tmp_path / "export")
    stored = load_file(tmp_path / "export" / "pytorch_lora_weights.safetensors")
    assert figures["parameters"] == sum(weight.numel() for weight in stored.values())
    if name == "lora":
        unet, weights = task.parts.unet, list(task.averages["export"].module)
    else:
        unet = task.averages["target"].module
        weights = [weight for _, weight in adapter_parameters(unet)]
    folders = (tiny_run.path("stable_diffusion", "export"), tmp_path / "export")
    pipeline, half = (load_pipeline(folders[0], p, folders[1]) for p in ("fp32", "bf16"))
    with torch.no_grad():
        for (_, parameter), weight in zip(adapter_parameters(unet), weights, strict=True):
            parameter.copy_(weight)
        expected, found, coarse = (
            u(*inputs_of_a_unet()).sample for u in (unet, pipeline.unet, half.unet)
        )
        checkpoints = tmp_path / name / "checkpoints"
        load_average(pipeline, checkpoints / "0000000004")
        earlier = pipeline.unet(*inputs_of_a_unet()).sample
        load_average(pipeline, checkpoints / "0000000008")
        last = pipeline.unet(*inputs_of_a_unet()).sample
        pipeline.unload_lora_weights()
        base = pipeline.unet(*inputs_of_a_unet()).sample
    assert torch.equal(found, expected) and not torch.equal(found, base)
    assert coarse.dtype == torch.float32, "the latents stay in it"
    assert torch.allclose(coarse, expected, atol=0.05)
    assert torch.equal(last, expected) and not torch.equal(earlier, expected), "as sweeps load it"
