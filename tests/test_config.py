"""Experiments: strict settings, one line per problem, and the files of configs/."""

import json
import re
from hashlib import sha256
from pathlib import Path

import pytest
import yaml

from hpc_hipgen.config import (
    SCHEDULE,
    TRAINED,
    ConfigError,
    Experiment,
    Text,
    Training,
    check_inputs,
    input_notes,
    inputs,
    load_experiment,
    parse_experiment,
    settings_tree,
)
from hpc_hipgen.config.reading import read_yaml
from hpc_hipgen.diffusion.schedule import uniform_timesteps
from hpc_hipgen.run import Run

ROOT = Path(__file__).parents[1]
STEPS = {"images": 8, "batch": 4, "lr": 1e-3}
EXPERIMENTS = sorted((ROOT / "configs").glob("*.yaml"))


def problems(tree):
    with pytest.raises(ConfigError) as error:
        parse_experiment(tree, "x.yaml")
    return str(error.value).splitlines()


def with_setting(tree, key, value):
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
    node[last] = value
    return tree


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_is_valid(path):
    assert load_experiment(path).name == path.stem


@pytest.mark.parametrize(
    "key, scale, weights",
    [("sampling.guidance", 2, [0.0, 0.0]), ("llcm.guidance", 1, [0.0, 2.0])],
)
def test_guidance_needs_a_teacher_that_knows_images_without_captions(
    tiny_settings, key, scale, weights
):
    tiny_settings["stable_diffusion"]["caption_dropout"] = 0
    tiny_settings["sampling"] |= {"guidance": scale, "llcm_guidance": 1}
    tiny_settings["llcm"]["guidance"] = weights
    (line,) = problems(tiny_settings)
    assert f"{key}: needs stable_diffusion.caption_dropout" in line
    tiny_settings["sampling"]["guidance"] = 1
    tiny_settings["llcm"]["guidance"] = [0.0, 0.0]
    parse_experiment(tiny_settings, "x.yaml")


def test_missing_inputs_are_listed_and_the_way_to_get_them(tiny_settings, tmp_path, monkeypatch):
    weights = tmp_path / "weights"
    tiny_settings["autoencoder"] = {"pretrained": str(weights / "sd")}
    teacher = {"pretrained": str(weights / "sd"), "conditioning": "caption"}
    training = tiny_settings["stable_diffusion"]["training"]
    tiny_settings["stable_diffusion"] = teacher | {"training": training}
    tiny_settings["evaluation"]["inception"] = str(weights / "inception.pth")
    config = parse_experiment(tiny_settings, "x.yaml")  # opens, wherever the weights are
    with pytest.raises(ConfigError) as error:
        check_inputs(config, "x.yaml")
    lines = str(error.value).splitlines()
    keys = ("autoencoder.pretrained", "stable_diffusion.pretrained", "evaluation.inception")
    for line, key in zip(lines, keys, strict=True):
        assert line.startswith(f"x.yaml: {key}: {weights}") and "does not exist" in line
        assert "`bash sbatch/prefetch.sh`" in line
    (weights / "sd").mkdir(parents=True)
    (weights / "inception.pth").touch()
    with pytest.raises(ConfigError) as error:
        check_inputs(config, "x.yaml")
    words = (
        "autoencoder.pretrained: .* holds no autoencoder",
        "holds no diffusers pipeline",
        "evaluation.inception: .*inception.pth: SHA-256 is .* not the known weights",
    )
    for line, expected in zip(str(error.value).splitlines(), words, strict=True):
        assert re.search(expected, line)
    monkeypatch.setattr(inputs, "INCEPTION_SHA256", sha256(b"").hexdigest())
    published_folder(weights / "sd")
    with pytest.raises(ConfigError, match=r"set stable_diffusion\.prediction=epsilon"):
        check_inputs(config, "x.yaml")
    check_inputs(config, "x.yaml", done=["train-stable_diffusion"])


def test_a_folder_of_another_size_is_noted_and_one_of_grey_images_refused(tiny_settings, tmp_path):
    published_folder(tmp_path, sample_size=64)
    tiny_settings["llcm"] |= {"base": str(tmp_path)}
    config = parse_experiment(tiny_settings, "x.yaml")
    (tmp_path / "vae" / "config.json").write_text('{"block_out_channels": [8, 8, 8, 8]}')
    check_inputs(config, "x.yaml")
    words = "note: llcm.base: was made to draw 512 pixels, and data.resolution is 32"
    assert input_notes(config) == [words]
    published_folder(tmp_path, sample_size=32)
    (tmp_path / "vae" / "config.json").write_text('{"in_channels": 1, "out_channels": 1}')
    assert input_notes(config) == []
    with pytest.raises(ConfigError, match=r"llcm.base: .* has in_channels 1; views") as error:
        check_inputs(config, "x.yaml")
    assert str(error.value).count("\n") == 1


@pytest.mark.parametrize("batch, expected", [(8, 2000), (32, 2000), (1024, 61_440)])
def test_a_checkpoint_is_not_written_every_second_step(batch, expected):
    training = Training(images=200_000, batch=batch, lr=1e-3)
    assert training.checkpoint_images == expected
    kept = Training(images=200_000, batch=batch, lr=1e-3, keep_images=5000)
    assert kept.checkpoint_images == min(expected, 5000), "those that are kept are written"
    assert Training(**training.model_dump() | {"checkpoint_images": 9}).checkpoint_images == 9


def published_folder(folder, scheduler=SCHEDULE, **unet):
    """The settings of a Stable Diffusion's parts, as published: what is as usual is left out."""
    settings = {
        "model_index.json": {},
        "scheduler/scheduler_config.json": scheduler,
        "unet/config.json": unet,
        "vae/config.json": {},
    }
    for name, values in settings.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(values))


def test_a_pretrained_folder_fits_the_experiment(tiny_settings, tmp_path):
    training = tiny_settings["stable_diffusion"]["training"]
    tiny_settings["stable_diffusion"] = {"pretrained": str(tmp_path), "training": training}
    tiny_settings["stable_diffusion"] |= {"conditioning": "caption"}
    tiny_settings["autoencoder"] |= {"latent_channels": 8}

    def checked():
        check_inputs(parse_experiment(tiny_settings, "x.yaml"), "x.yaml")

    published_folder(tmp_path)
    with pytest.raises(ConfigError) as error:
        checked()
    first, second = str(error.value).splitlines()
    assert first.endswith("predicts epsilon; set stable_diffusion.prediction=epsilon")
    assert "takes 4 latent channels, but the autoencoder has 8" in second
    tiny_settings["stable_diffusion"]["prediction"] = "epsilon"
    published_folder(tmp_path, in_channels=8)
    checked()
    (tmp_path / "tokenizer").mkdir()
    words = tmp_path / "tokenizer" / "tokenizer.json"
    words.write_text(json.dumps({"added_tokens": [{"content": "left 55.0 degrees"}]}))
    with pytest.raises(ConfigError, match="has angles among its words already"):
        checked()
    words.unlink()
    tiny_settings["autoencoder"] = {"pretrained": str(tmp_path)}
    with pytest.raises(ConfigError, match="takes 8 latent channels, but the autoencoder has 4"):
        checked()


def test_an_llcm_may_have_a_teacher_of_another_run(tiny_settings, tmp_path):
    for name in ("stable_diffusion", "autoencoder"):
        del tiny_settings[name]
    tiny_settings["llcm"]["base"] = str(tmp_path)
    config = parse_experiment(tiny_settings, "x.yaml")
    assert config.trained() == ["ruler", "llcm"]
    with pytest.raises(ConfigError, match=r"llcm\.base: .* holds no diffusers pipeline"):
        check_inputs(config, "x.yaml")


@pytest.mark.parametrize(
    ("scheduler", "unet", "words"),
    [
        ({}, {}, "schedule .*: beta_start 0.0001, not 0.00085; .* beta_schedule linear, not"),
        ({"rescale_betas_zero_snr": True}, {}, "schedule .*: rescale_betas_zero_snr True, not"),
        ({"prediction_type": "sample"}, {}, "predicts sample, not epsilon or v_prediction"),
        ({}, {"time_cond_proj_dim": 256}, "is a consistency model"),
    ],
)
def test_a_base_is_a_stable_diffusion_with_its_schedule(
    tiny_settings, tmp_path, scheduler, unet, words
):
    for name in ("stable_diffusion", "autoencoder"):
        del tiny_settings[name]
    tiny_settings["llcm"]["base"] = str(tmp_path)
    config = parse_experiment(tiny_settings, "x.yaml")
    published_folder(tmp_path)
    check_inputs(config, "x.yaml")
    published_folder(tmp_path, SCHEDULE | scheduler if scheduler or unet else {}, **unet)
    with pytest.raises(ConfigError, match=rf"^x\.yaml: llcm\.base: .* {words}") as error:
        check_inputs(config, "x.yaml")
    assert "\n" not in str(error.value)
    check_inputs(config, "x.yaml", done=["train-llcm"])


def test_a_student_of_another_solver_has_it(tiny_settings):
    tiny_settings["llcm_paper"] = tiny_settings["llcm"] | {"solver": "ddim"}
    assert problems(tiny_settings) == ["x.yaml: llcm_paper.solver: must be 'paper'"]
    tiny_settings["llcm_paper"]["solver"] = "paper"
    config = parse_experiment(tiny_settings, "x.yaml")
    assert config.trained()[-2:] == ["llcm", "llcm_paper"]


def test_a_discrete_vae_of_another_run_is_its_export(token_settings, tmp_path):
    token_settings["discrete_vae"] = {"pretrained": str(tmp_path)}
    config = parse_experiment(token_settings, "x.yaml")
    assert config.trained() == ["ruler", "dall_e"]
    with pytest.raises(ConfigError, match=r"discrete_vae\.pretrained: .* holds no config\.json"):
        check_inputs(config, "x.yaml")
    (tmp_path / "config.json").touch()
    check_inputs(config, "x.yaml")


def test_the_default_experiment_has_all_models():
    config = load_experiment(ROOT / "configs" / "llcm.yaml")
    assert {"ruler", "autoencoder", "stable_diffusion", "llcm"} <= set(config.trained())
    assert (config.data.train, config.data.validation, config.data.test) == (219, 31, 84)
    assert set(config.sampling.llcm_steps) == {1, 2, 4, 8} and config.sampling.steps >= 20


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("data.trian", 3, "x.yaml: unknown key 'data.trian'"),
        ("stable_diffusion.unet.depth", 3, "unknown key 'stable_diffusion.unet.depth'"),
        ("data.train", 0, "data.train: "),
        ("data.train", "many", "(got 'many')"),
        ("data.resolution", 36, "data.resolution: "),
        ("ruler.training.lr", -1, "ruler.training.lr: "),
        ("ruler.training.lr", float("nan"), "ruler.training.lr: "),
        ("llcm.solver", "euler", "llcm.solver: "),
        (
            "llcm.training",
            {"images": 26, "batch": 13, "lr": 1e-3},
            "llcm.training.batch: 13 is more than the data set has (6 films x 2 views = 12)",
        ),
        ("llcm.training.images", 3, "images: 3 is less than one batch of 4"),
        ("llcm.training.warmup_images", 8, "warmup_images: 8 of 8 images, which leaves none"),
        ("llcm.skip", 1, "llcm.skip: "),
        ("llcm.training.micro_batch", 3, "batch: 4 is not a multiple of micro_batch 3"),
        (
            "llcm.training.plateau",
            {"patience": 3},
            "plateau: given, but schedule is 'cosine', which ignores it",
        ),
        ("llcm.training.zero_stage", 4, "llcm.training.zero_stage: "),
        (
            "llcm.training",
            {"images": 8, "batch": 4, "lr": 1e-3, "optimizer": "muon", "zero_stage": 1},
            "llcm.training: zero_stage: muon needs whole matrices on every rank, so 0, not 1",
        ),
        ("stable_diffusion.pretrained", "/nowhere", "unet: given, but the pretrained folder /now"),
        ("stable_diffusion.unet.attention", [True], "attention: one entry per level"),
        ("stable_diffusion", None, "llcm.base: give a diffusers folder"),
        ("autoencoder", None, "autoencoder: needed by stable_diffusion"),
        ("autoencoder.training", None, "give either pretrained (a folder) or training"),
        ("data.source", "films", "data.films: a folder is needed"),
        ("data.films", "/films", "x.yaml: data.films: given, but"),
        ("data", {"warp": 5, "views": 1}, "data.warp: given, but the one view"),
        ("data", {"balance": 1, "views": 1}, "data.balance: given, but data.views leaves"),
        ("name", "a b", "name: "),
        ("llcm.skip", 30, "llcm.skip: 30 does not divide"),
        ("llcm.guidance", [6, 2], "llcm.guidance: 0 <= w_min <= w_max"),
        ("sampling.guidance", 9, "sampling.guidance: w = 8 (the scale less 1) is outside llcm.gui"),
        ("sampling.llcm_guidance", 9, "sampling.llcm_guidance: w = 8 (the scale less 1) is"),
        ("sampling", {"llcm_guidance": None, "guidance": 1}, "give sampling.llcm_guidance to draw"),
        ("autoencoder.pretrained", "/nowhere", "autoencoder: block_out_channels: given, but the"),
        ("sampling.llcm_steps", [1, 51], "sampling.llcm_steps: different numbers within 1..50"),
        ("sampling.llcm_steps", [2, 2], "sampling.llcm_steps: different numbers"),
        ("sampling.llcm_steps", [], "sampling.llcm_steps: different numbers"),
        ("sampling.steps", 1000, "sampling.steps: "),
        ("ruler.channels", [], "ruler.channels: "),
        ("stable_diffusion.unet.block_out_channels", [0, 32], "block_out_channels.0: "),
        ("ruler.channels", [8, 12], "ruler.channels: 12 is not a multiple of 8"),
        (
            "ruler.channels",
            [8] * 6,
            "data.resolution: 32 is not a multiple of 64, the stride of the ruler",
        ),
        (
            "autoencoder.block_out_channels",
            [8, 12],
            "block_out_channels: 12 is not a multiple of 8",
        ),
        (
            "autoencoder.block_out_channels",
            [8] * 7,
            "not a multiple of 64, the stride of the autoencoder",
        ),
        ("stable_diffusion.unet.block_out_channels", [16, 40], "40 is not a multiple of 16"),
        ("stable_diffusion.unet.head_dim", 10, "32 is not a multiple of 3, the number of heads"),
        ("stable_diffusion.text.heads", 5, "text.hidden_size: 32 is not a multiple of 5"),
        ("stable_diffusion.text.max_length", 40, "stable_diffusion.text.max_length: "),
        ("ruler", {}, "ruler: give either pretrained (a folder) or training"),
        ("lora", {"training": STEPS, "rank": 0}, "lora.rank: "),
        ("lora", {"training": STEPS, "layers": "most"}, "lora.layers: "),
        ("dreambooth", {"training": STEPS, "films": 2}, "dreambooth.films: "),
        ("dreambooth", {"training": STEPS, "subjects": {}}, "subjects: one token a class"),
        ("dreambooth", {"training": STEPS, "subjects": {9: "sks"}}, "dreambooth.subjects.9"),
        ("dreambooth", {"training": STEPS, "subjects": {1: "a b"}}, "'a b' is not one lower-case"),
        ("dreambooth", {"training": STEPS, "subjects": {1: "a", 2: "a"}}, "all different"),
        (
            "dreambooth",
            {"training": STEPS | {"images": 16, "batch": 16}, "subjects": {1: "sks"}, "films": 3},
            "16 is more than the data set has (3 films x 2 views = 6)",
        ),
        ("lcm_lora", {"training": STEPS, "skip": 30}, "lcm_lora.skip: 30 does not divide"),
        ("lcm_lora", {"training": STEPS, "guidance": [1, 3]}, "lcm_lora.guidance: "),
    ],
)
def test_a_mistake_is_one_line(tiny_settings, key, value, words):
    (line,) = problems(with_setting(tiny_settings, key, value))
    assert line.startswith("x.yaml: ") and words in line


def test_all_mistakes_are_listed(tiny_settings):
    for key in ("data.trian", "llcm.slip", "seedd"):
        with_setting(tiny_settings, key, 1)
    assert len(problems(tiny_settings)) == 3


def test_the_baseline_takes_captions_only(tiny_settings):
    tiny_settings["stable_diffusion_caption"] = tiny_settings["stable_diffusion"]
    assert "must be 'caption'" in problems(tiny_settings)[0]
    for name in ("stable_diffusion", "llcm", "autoencoder"):
        del tiny_settings[name]
    tiny_settings["stable_diffusion_caption"]["conditioning"] = "caption"
    assert problems(tiny_settings) == ["x.yaml: autoencoder: needed by stable_diffusion_caption"]


def test_a_probe_reads_no_latents_of_another_autoencoder(tiny_settings):
    tiny_settings["probe"] = {"training": STEPS}
    tiny_settings["llcm"] |= {"measurement_weight": 0.05}
    assert parse_experiment(tiny_settings, "x").probe
    tiny_settings["llcm"]["base"] = "/nowhere"
    (line,) = problems(tiny_settings)
    assert line.startswith("x.yaml: llcm.measurement_weight: the probe reads latents of the run's")
    tiny_settings["autoencoder"] = {"pretrained": "/nowhere"}
    assert parse_experiment(tiny_settings, "x").probe, "the very autoencoder of the base"


def test_a_probe_reads_no_latents_of_the_feedback_s_base(tiny_settings):
    tiny_settings |= {"probe": {"training": STEPS}, "reward_model": {"training": STEPS}}
    tiny_settings["llcm"] |= {"measurement_weight": 0.05}
    tiny_settings["feedback"] = {"training": STEPS, "base": "/nowhere"}
    del tiny_settings["stable_diffusion"]
    (line,) = problems(tiny_settings)
    assert "feedback.base has its own" in line
    tiny_settings["autoencoder"] = {"pretrained": "/nowhere"}
    assert parse_experiment(tiny_settings, "x").probe


def test_adapters_need_a_base(tiny_settings):
    tiny_settings["lora"] = {"training": STEPS}
    assert "lora" in parse_experiment(tiny_settings, "x").trained()
    tiny_settings["stable_diffusion"] = tiny_settings["llcm"] = None
    (line,) = problems(tiny_settings)
    assert line.startswith("x.yaml: lora.base: give a diffusers folder")
    tiny_settings["lora"]["base"] = "/nowhere"
    config = parse_experiment(tiny_settings, "x")  # opens, wherever the base is
    with pytest.raises(ConfigError, match=r"x: lora\.base: /nowhere holds no diffusers"):
        check_inputs(config, "x")
    check_inputs(config, "x", done=["train-lora"])


def test_feedback_asks_a_ruler_that_does_not_measure(tiny_settings):
    tiny_settings["feedback"] = {"training": STEPS}
    assert "reward_model: needed by feedback" in problems(tiny_settings)[0]
    tiny_settings["reward_model"] = tiny_settings["ruler"]
    assert parse_experiment(tiny_settings, "x").trained().index("feedback") == 4
    pretrained = {"pretrained": "/some/ruler/export", "training": STEPS}
    tiny_settings["reward_model"] = pretrained
    assert "reward_model" not in parse_experiment(tiny_settings, "x").trained()
    with pytest.raises(ConfigError, match=r"reward_model\.pretrained: .*holds no ruler\.json"):
        check_inputs(parse_experiment(tiny_settings, "x"), "x")
    for same in ("/some/ruler/export", "/some/llcm/../ruler/export"):
        tiny_settings["ruler"] = pretrained | {"pretrained": same}
        assert "must be measured by another" in problems(tiny_settings)[0]
    tiny_settings["feedback"] = None
    assert "there is no feedback to ask it" in problems(tiny_settings)[0]


def test_feedback_needs_late_steps_and_a_base(tiny_settings):
    tiny_settings["reward_model"] = tiny_settings["ruler"]
    tiny_settings["feedback"] = {"training": STEPS, "steps": 10, "below": 250, "stops": 3}
    assert parse_experiment(tiny_settings, "x").feedback.late_steps == (7, 8, 9)
    tiny_settings["feedback"]["stops"] = 4
    assert "only 3 of 10 steps are at timestep 250 or below" in problems(tiny_settings)[0]
    tiny_settings["feedback"]["stops"] = 1
    tiny_settings["stable_diffusion"] = tiny_settings["autoencoder"] = None
    assert "feedback.base: give a diffusers folder" in problems(tiny_settings)[0]
    tiny_settings["feedback"]["base"] = "/nowhere"
    config = parse_experiment(tiny_settings, "x")
    assert config.trained() == ["ruler", "reward_model", "feedback", "llcm"]


def test_settings_of_the_command_line(tmp_path, tiny_settings):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_settings))
    config = load_experiment(path, ["seed=9", "llcm.guidance=[1, 2]", "sampling.precision=bf16"])
    assert (config.seed, config.llcm.guidance, config.sampling.precision) == (9, (1, 2), "bf16")
    for override, words in (
        ("seed", "expected key.sub=value"),
        ("seed.sub=1", "'seed' is not a section"),
        ("seed=[", "not valid YAML"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_experiment(path, [override])


@pytest.mark.parametrize("name", ["films #2", "#2", "2024", "2024: clinic", "{a}", "'a b", " b"])
def test_a_folder_of_the_command_line_may_have_any_name(tmp_path, tiny_settings, name):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_settings))
    config = load_experiment(path, [f"evaluation.films={name}", f"ruler.pretrained=/x/{name}"])
    assert (config.evaluation.films, config.ruler.pretrained) == (Path(name), Path(f"/x/{name}"))
    for nothing in ("", "null", "~"):
        assert load_experiment(path, [f"evaluation.films={nothing}"]).evaluation.films is None


def test_an_override_changes_the_section_that_it_names_alone(tmp_path):
    """YAML gives what two sections share by an alias as one object."""
    path = ROOT / "configs" / "llcm.yaml"
    before = load_experiment(path)
    given = ["ruler.training.images=600", "stable_diffusion.unet.head_dim=16"]
    config = load_experiment(path, given)
    assert config.ruler.training.images == 600 and config.stable_diffusion.unet.head_dim == 16
    assert config.reward_model == before.reward_model
    assert config.stable_diffusion_caption == before.stable_diffusion_caption


def test_a_mistake_is_blamed_on_who_made_it(tmp_path, tiny_settings):
    path = tmp_path / "tiny.yaml"
    tiny_settings["ruler"]["training"]["lr"] = -1
    path.write_text(yaml.safe_dump(tiny_settings))
    overrides = ["llcm.slip=1", "data={warp: 5, views: 1}", "seed=4"]
    with pytest.raises(ConfigError) as error:
        load_experiment(path, overrides)
    assert sorted(line[: line.index(": ")] for line in str(error.value).splitlines()) == sorted(
        [str(path), "'llcm.slip=1'", "'data={warp"]
    )


def test_what_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("name: h\u00fcfte".encode("latin-1"))
    (tmp_path / "folder.yaml").mkdir()
    for name, words in (("latin", "not valid YAML"), ("folder", "cannot be read")):
        with pytest.raises(ConfigError, match=words) as error:
            load_experiment(tmp_path / f"{name}.yaml")
        assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_damaged_run_is_one_line(tmp_path):
    (tmp_path / "config.yaml").write_text("name: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        Run(tmp_path)


@pytest.mark.parametrize(
    "content, words",
    [
        ("- 1", "a mapping"),
        ("a: [", "not valid YAML"),
        ("a: {b: 1, c: 2, b: 3}", "key 'b' is given twice in .* line 1"),
    ],
)
def test_files_that_are_no_experiment(tmp_path, content, words):
    path = tmp_path / "x.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=words) as error:
        load_experiment(path)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="no such file"):
        load_experiment(tmp_path / "y.yaml")


def test_dates_and_times_of_day_are_text(tmp_path):
    given = {"a": "1:30", "b": "2024-01-02", "c": "2024-13-45", "d": "1:30.5", "e": 90, "f": 1.5}
    lines = [f"{key}: {value}" for key, value in given.items()]
    (tmp_path / "x.yaml").write_text("\n".join(lines))
    assert read_yaml(tmp_path / "x.yaml") == given
    assert settings_tree({}, [line.replace(": ", "=") for line in lines]) == given


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("ruler.channels=[0]", "'ruler.channels=[0]': ruler.channels.0: Input should be greater"),
        ("ruler.channels=[]", "'ruler.channels=[]': ruler.channels: Tuple should have at least 1"),
        (
            "ruler.training.batch=9000",
            "llcm.yaml with 'ruler.training.batch=9000': ruler.training: images: 6000 is less than",
        ),
    ],
)
def test_one_mistake_of_an_argument_is_one_line_that_names_it(override, told):
    with pytest.raises(ConfigError) as error:
        load_experiment(ROOT / "configs" / "llcm.yaml", [override])
    assert told in str(error.value) and "\n" not in str(error.value)


def test_models_have_one_order():
    others = ("name", "seed", "data", "sampling", "evaluation", "logging")
    assert TRAINED == tuple(name for name in Experiment.model_fields if name not in others)


def test_what_is_trained(tiny_settings):
    assert parse_experiment(tiny_settings, "x").trained() == [
        "ruler",
        "autoencoder",
        "stable_diffusion",
        "llcm",
    ]


def test_settings_do_not_change_and_survive_yaml(tiny_settings):
    config = parse_experiment(tiny_settings, "x")
    with pytest.raises(ValueError):
        config.seed = 4
    again = yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))
    assert parse_experiment(again, "x") == config
    assert Text().max_length == 64, "captions of digits need 52 tokens"
    assert config.sampling.student_guidance == config.sampling.guidance


@pytest.mark.parametrize(("steps", "first"), [(334, 667), (501, 501), (600, 600)])
def test_many_steps_begin_with_noise(tiny_settings, steps, first):
    tiny_settings["sampling"] = {"steps": steps}
    with pytest.raises(ConfigError, match=f"steps would begin at timestep {first} of 1000"):
        parse_experiment(tiny_settings, "x.yaml")
    assert uniform_timesteps(steps)[0] == first
    for good in (2, 20, 25, 30, 50, 60, 111, 999):
        tiny_settings["sampling"] = {"steps": good}
        parse_experiment(tiny_settings, "x.yaml")
    tiny_settings["sampling"] = {"steps": steps, "solver": "leapfrog"}  # has Karras' levels
    parse_experiment(tiny_settings, "x.yaml")


def leaves(tree, key=""):
    """The keys of all single values of a tree of settings, and the values."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{key}{name}.")
        elif not isinstance(value, list):
            yield f"{key}{name}", value


@pytest.mark.parametrize("name", ["compare", "llcm", "unclip", "film_ruler", "lab_ruler"])
def test_no_number_is_infinite_or_a_truth(name):
    path = ROOT / "configs" / f"{name}.yaml"
    tree = load_experiment(path).model_dump(mode="json")
    numbers = [(k, v) for k, v in leaves(tree) if type(v) in (int, float)]
    assert len(numbers) > 30
    for key, value in numbers:
        for wrong in ("true", *([".inf"] if isinstance(value, float) else [])):
            with pytest.raises(ConfigError) as caught:
                load_experiment(path, [f"{key}={wrong}"])
            lines = str(caught.value).splitlines()
            assert any(line.startswith(f"'{key}={wrong}': {key}") for line in lines), (key, lines)


def test_feedback_goes_on_from_one_teacher(tiny_settings):
    feedback = {"base": "/elsewhere", "training": STEPS}
    tiny_settings |= {"reward_model": tiny_settings["ruler"], "feedback": feedback}
    with pytest.raises(ConfigError, match=r"feedback.base: given, but stable_diffusion is trained"):
        parse_experiment(tiny_settings, "x")


def test_a_seed_leaves_room_for_those_of_images(tiny_settings):
    with pytest.raises(ConfigError, match=r"seed: .* less than 4294967296"):
        parse_experiment(tiny_settings | {"seed": 2**32}, "x")
    assert parse_experiment(tiny_settings | {"seed": 2**32 - 1}, "x").seed * 1_000_003 < 2**63


def test_a_class_of_pipelines_and_a_stride_that_do_not_fit_are_named(tiny_settings, tmp_path):
    base = tmp_path / "base"
    (base / "vae").mkdir(parents=True)
    (base / "vae" / "config.json").write_text('{"block_out_channels": [8, 8, 8, 8, 8, 8, 8]}')
    index = base / "model_index.json"
    index.write_text('{"_class_name": "StableUnCLIPPipeline"}')
    tiny_settings["llcm"]["base"] = str(base)
    config = parse_experiment(tiny_settings, "x")
    with pytest.raises(ConfigError, match=r"llcm.base: .* is a StableUnCLIPPipeline, not a Stable"):
        check_inputs(config, "x")
    index.write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(ConfigError, match=r"data.resolution: 32 is not a multiple of 64"):
        check_inputs(config, "x")


def test_latents_that_are_halved_have_an_even_size(tiny_settings):
    auto = tiny_settings["autoencoder"]
    auto |= {"block_out_channels": [8] * 5, "scale_equivariance": 0.1}
    parse_experiment(tiny_settings, "x")
    auto |= {"block_out_channels": [8] * 6}
    with pytest.raises(ConfigError, match=r"data.resolution: 32 is not a multiple of 64, twice"):
        parse_experiment(tiny_settings, "x")
    auto |= {"block_out_channels": [8] * 5, "window": 16}
    with pytest.raises(ConfigError, match=r"autoencoder.window: 16 is not a multiple of 32, twice"):
        parse_experiment(tiny_settings, "x")


def test_smoke_says_what_of_the_command_line_it_replaces(capsys):
    given = ["data.resolution=64", "llcm.solver=paper", "llcm.training.batch=4"]
    config = load_experiment(ROOT / "configs" / "llcm.yaml", given, smoke=True)
    assert config.llcm.solver == "paper"
    assert capsys.readouterr().err.splitlines() == [
        f"'data.resolution=64': --smoke has {config.data.resolution} instead",
        f"'llcm.training.batch=4': --smoke has {config.llcm.training.batch} instead",
    ]


def test_eta_needs_a_solver_that_takes_it(tiny_settings):
    tiny_settings["sampling"] = {"eta": 0.5, "solver": "leapfrog"}
    with pytest.raises(ConfigError, match="eta: the leapfrog takes none"):
        parse_experiment(tiny_settings, "x.yaml")
    tiny_settings["sampling"] = {"eta": 0.5}
    assert parse_experiment(tiny_settings, "x.yaml").sampling.eta == 0.5


@pytest.mark.parametrize("key, value", [("resolution", 64), ("head_distance", 0.5)])
def test_a_pretrained_ruler_measures_views_like_its_own(tiny_settings, tmp_path, key, value):
    made = {"resolution": 32, "head_distance": 0.6, key: value}
    (tmp_path / "ruler.json").write_text(json.dumps(made))
    tiny_settings["ruler"] = {"pretrained": str(tmp_path)}
    with pytest.raises(ConfigError, match=f"was trained on views with {key} {value:g}, but"):
        check_inputs(parse_experiment(tiny_settings, "x.yaml"), "x.yaml")


def test_all_that_a_pretrained_ruler_has_otherwise_is_said_at_once(tiny_settings, tmp_path):
    (tmp_path / "ruler.json").write_text(json.dumps({"resolution": 64, "head_distance": 0.5}))
    tiny_settings["ruler"] = {"pretrained": str(tmp_path)}
    with pytest.raises(ConfigError, match=r"set data\.resolution=64 data\.head_distance=0\.5, or"):
        check_inputs(parse_experiment(tiny_settings, "x.yaml"), "x.yaml")
