import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from stock_pipelines import STOCK, asked_of_stock
from warm_python import warm_python


@pytest.fixture(scope="session")
def stock_process(tmp_path_factory):
    """Runs a script in a process that has no code of this project.

    `stock_process(script, asked)` hands it what is asked for, as JSON, and the path of an npz, and
    returns the arrays that it stored there and what it said.
    """

    def run(script, asked):
        folder = tmp_path_factory.mktemp("stock")
        path = folder / "images.npz"
        stock = warm_python(script, json.dumps(asked), path, output=folder / "said.txt")
        status, said = stock.finish()
        assert status == 0, said
        with np.load(path) as stored:
            return dict(stored), said

    return run


@pytest.fixture(scope="session")
def draws_what_was_stored(stock_process):
    """Whether a stock Stable Diffusion draws a row of a run anew, to the bit."""
    from hpc_hipgen.evaluation.samples import read_samples

    def check(run, row, model):
        samples = read_samples(run.path("samples", row, "shard-00000.tar"))[:3]
        asked = {row: (str(run.path(model, "export")), *asked_of_stock(samples))}
        drawn, _ = stock_process(STOCK, asked)
        return all(np.array_equal(a, b.image) for a, b in zip(drawn[row], samples, strict=True))

    return check


@pytest.fixture(scope="session")
def stock(tiny_run, stock_process):
    """What a process that has no code of this project draws for the first prompts of each row."""
    from hpc_hipgen.evaluation.samples import read_samples

    asked, stored = {}, {}
    for row, model in (("stable_diffusion", "stable_diffusion"), ("llcm_2", "llcm")):
        samples = read_samples(tiny_run.path("samples", row, "shard-00000.tar"))[:3]
        stored[row] = samples
        asked[row] = (str(tiny_run.path(model, "export")), *asked_of_stock(samples))
    drawn, said = stock_process(STOCK, asked)
    return SimpleNamespace(drawn=drawn, stored=stored, said=said)


@pytest.fixture(params=[8, None], ids=str)
def run_of_another_size(tiny_run, tmp_path, request):
    """That run, its Stable Diffusion one of 16 pixels, or of none, by an early diffusers."""
    from hpc_hipgen.run import Run

    folder = shutil.copytree(tiny_run.folder, tmp_path / "other")
    path = folder / "stable_diffusion" / "export" / "unet" / "config.json"
    settings = json.loads(path.read_text()) | {"_diffusers_version": "0.6.0"}
    del settings["sample_size"]
    path.write_text(
        json.dumps(settings | ({"sample_size": request.param} if request.param else {}))
    )
    return Run(folder)


@pytest.fixture
def exported_size(tmp_path):
    """Pixels that a stock pipeline of a task's export draws when it is told no size."""
    from hpc_hipgen.generators.sampling import load_pipeline

    def size(task):
        task.export(tmp_path / "export")
        pipeline = load_pipeline(tmp_path / "export")
        return pipeline.unet.config.sample_size * pipeline.vae_scale_factor

    return size


@pytest.fixture
def losses_by_weight():
    """Losses of a batch where the left half of the latents counts, the right one, and both."""
    import torch

    def losses(task, batch):
        left = torch.zeros_like(batch["weight"])
        left[..., : left.shape[-1] // 2] = 1.0
        with torch.no_grad():
            weights = (left, 1 - left, torch.ones_like(left))
            return [task.module(**batch | {"weight": weight})[0] for weight in weights]

    return losses
