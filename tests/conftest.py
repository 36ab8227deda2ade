import copy
import os

import pytest

# Tiny tensors gain nothing from threads, and lose much where other work runs beside the tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    """Files that take long come first: begun last, one of them keeps a lone worker busy."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.parent.name != "slurm", item.path not in slow))


STEPS = {"images": 8, "batch": 4, "lr": 1e-3}
TINY = {
    "name": "tiny",
    "seed": 3,
    "data": {"train": 6, "validation": 2, "test": 5, "resolution": 32, "views": 2},
    "ruler": {"channels": [8, 16], "training": {**STEPS}},
    "autoencoder": {"block_out_channels": [8, 16], "training": STEPS | {"ema_images": 8}},
    "stable_diffusion": {
        "text": {"hidden_size": 32, "layers": 1, "heads": 2},
        "unet": {"block_out_channels": [16, 32], "attention": [False, True], "head_dim": 16},
        "training": STEPS | {"ema_images": 8},
    },
    "llcm": {"training": {**STEPS}},
    "sampling": {"steps": 2, "eta": 1, "llcm_steps": [1, 2], "shard_size": 4, "batch": 3},
    "evaluation": {"permutations": 20},
}

SHARED = ("name", "seed", "data", "ruler", "sampling", "evaluation")
TOKENS = {key: TINY[key] for key in SHARED} | {
    "discrete_vae": {
        "block_out_channels": [8, 8, 16],
        "codes": 16,
        "code_width": 4,
        "window": 16,
        "training": STEPS | {"ema_images": 8},
    },
    "dall_e": {
        "text_length": 40,
        "width": 32,
        "layers": 2,
        "heads": 2,
        "sampling": {"top_k": 12, "top_p": 0.9, "guidance": 1.5},
        "training": STEPS | {"ema_images": 8},
    },
}

EMBEDDINGS = {key: TINY[key] for key in (*SHARED, "autoencoder")} | {
    "clip": {
        "text": {"hidden_size": 32, "layers": 1, "heads": 2},
        "vision": {"width": 32, "layers": 1, "heads": 2, "patch": 8},
        "contrast": 2,
        "training": STEPS | {"ema_images": 8},
    },
    "prior": {"width": 32, "layers": 1, "heads": 2, "training": STEPS | {"ema_images": 8}},
    "unclip": {
        "unet": TINY["stable_diffusion"]["unet"],
        "sampling": {"prior_steps": 2, "prior_guidance": 1.5, "noise_level": 3},
        "training": STEPS | {"ema_images": 8},
    },
}


@pytest.fixture
def tiny_settings():
    """An experiment of every stage with two optimizer steps a model, as a tree of plain values."""
    return copy.deepcopy(TINY)


@pytest.fixture
def token_settings():
    """The same of DALL-E, which needs no latent diffusion."""
    return copy.deepcopy(TOKENS)


@pytest.fixture
def embedding_settings():
    """The same of unCLIP, which needs of latent diffusion the autoencoder alone."""
    return copy.deepcopy(EMBEDDINGS)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """A run of that experiment up to its samples, made in this process; not to be changed."""
    return sampled_run(tmp_path_factory.mktemp("tiny") / "run", TINY)


@pytest.fixture(scope="session")
def shorter_settings(tiny_run):
    """The tiny experiment with that run's ruler and autoencoder, as a tree; not to be changed."""
    given = {name: str(tiny_run.path(name, "export")) for name in ("ruler", "autoencoder")}
    tree = tiny_run.config.model_dump(mode="json", exclude_unset=True)
    return tree | {name: {"pretrained": folder} for name, folder in given.items()}


@pytest.fixture(scope="session")
def token_run(tmp_path_factory):
    """The same of DALL-E."""
    return sampled_run(tmp_path_factory.mktemp("tokens") / "run", TOKENS)


@pytest.fixture(scope="session")
def embedding_run(tmp_path_factory):
    """The same of unCLIP."""
    return sampled_run(tmp_path_factory.mktemp("embeddings") / "run", EMBEDDINGS)


def sampled_run(folder, tree):
    """Prepares, trains and samples an experiment in a new run folder."""
    from hpc_hipgen.config import parse_experiment
    from hpc_hipgen.pipeline import report_items
    from hpc_hipgen.run import Run
    from jobs import prepare, sample, train

    run = Run.create(folder, parse_experiment(tree, "tiny"))
    prepare.prepare(run)
    for model in run.config.trained():
        train.train(run, model)
    sample.sample_items(run, report_items(run))
    return run


def pytest_terminal_summary(terminalreporter):
    """Says once why tests of a real Slurm were skipped, and the figures that tests recorded.

    From the reports, which come from every worker of pytest-xdist.
    """
    skipped = (report.longrepr for report in terminalreporter.stats.get("skipped", []))
    reasons = {reason[2] for reason in skipped if isinstance(reason, tuple)}
    for reason in sorted(reason for reason in reasons if "no Slurm" in reason):
        terminalreporter.write_line(f"tests/slurm: {reason}")
    for report in terminalreporter.stats.get("passed", []):
        for name, text in report.user_properties:
            if name == "figure":
                terminalreporter.write_line(text)
