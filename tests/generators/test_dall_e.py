"""DALL-E: the loss over caption and image tokens, drawing with the cache, and what is exported."""

import copy
import json

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer, GPT2LMHeadModel

from hpc_hipgen.config import parse_experiment
from hpc_hipgen.evaluation.samples import read_samples
from hpc_hipgen.generators import discrete_vae, text
from hpc_hipgen.generators.dall_e import (
    CODE_TOKEN,
    DallEDrawer,
    DallETask,
    TokenLoss,
    draw_codes,
    load_parts,
    pick,
    warpers,
)
from hpc_hipgen.generators.discrete_vae import encode_codes
from hpc_hipgen.radiograph.layouts import read_pairs
from hpc_hipgen.tasks import load_discrete_vae
from hpc_hipgen.training.clock import ImageRandom
from hpc_hipgen.training.loop import train
from jobs import evaluate, report

PLAIN = {"temperature": 1.0, "top_k": None, "top_p": 1.0, "guidance": 1.0}


def make_task(run, **section):
    tree = run.config.model_dump(mode="json", exclude_unset=True)
    tree["dall_e"].update(section)
    films = read_pairs(run.path("data"))
    return DallETask(
        parse_experiment(tree, "x"), films, load_discrete_vae(run), run.path("latents")
    )


@pytest.fixture(scope="module")
def task(token_run):
    return make_task(token_run)


@pytest.fixture(scope="module")
def parts(token_run):
    return load_parts(token_run.path("dall_e", "export"))


@pytest.fixture(scope="module")
def samples(token_run):
    return read_samples(token_run.path("samples", "dall_e", "shard-00000.tar"))


def test_the_vocabulary_has_words_codes_and_measurements(task):
    parts, vae = task.parts, task.parts.vae
    tokenizer, config = parts.tokenizer, parts.transformer.config
    assert parts.grid == 8 and config.n_positions == 40 + 64
    assert config.vocab_size == len(tokenizer)
    first = tokenizer.convert_tokens_to_ids("left 55.0 degrees")
    assert parts.first_code + vae.config.codes == first
    assert tokenizer.convert_tokens_to_ids(CODE_TOKEN.format(3)) == parts.first_code + 3
    words = parts.transformer.get_input_embeddings()
    assert isinstance(words, text.MeasurementEmbedding)
    assert words.table().shape == (config.vocab_size, config.n_embd)


def test_captions_may_stay_digits(token_run):
    task = make_task(token_run, conditioning="caption", text_length=60)
    transformer = task.parts.transformer
    assert isinstance(transformer.get_input_embeddings(), torch.nn.Embedding)
    assert transformer.config.vocab_size == len(task.parts.tokenizer)
    for text_length in (51, 40):  # 40 do for captions with measurements
        with pytest.raises(ValueError, match=f"text_length: {text_length}, .* up to 52 tokens"):
            make_task(token_run, conditioning="caption", text_length=text_length)


def test_half_of_the_first_heads_look_at_the_measurements(token_run):
    task = make_task(token_run, width=192, heads=6)
    transformer, ids = task.parts.transformer, task.texts[:1]
    transformer.set_attn_implementation("eager")
    tokens = torch.cat([ids, task.codes[:1].flatten(1) + task.parts.first_code], 1)
    with torch.no_grad():
        attention = transformer(tokens, output_attentions=True).attentions[0][0]
    first = task.parts.tokenizer.convert_tokens_to_ids("left 55.0 degrees")
    measured = ids[0] >= first
    assert measured.sum() == 2
    shares = attention[:, 40:, :40][:, :, measured].sum(-1).mean(1)  # (heads,)
    assert shares[:3].min() > 0.5 and shares[3:].max() < 0.1


def test_positions_start_as_row_plus_column(task):
    places = task.parts.transformer.transformer.wpe.weight[40:].unflatten(0, (8, 8))
    step = places[1:] - places[:-1]
    assert torch.allclose(step, step[:, :1].expand_as(step), atol=1e-6)
    assert places.detach().std() == pytest.approx(0.02, rel=0.3)


def test_the_loss_is_that_of_the_next_tokens(task):
    batch = task.batch(np.arange(3), ImageRandom(0, np.arange(3)))
    loss = TokenLoss(task.parts, text_weight=0.25)
    codes, ids = batch["codes"], batch["ids"]
    with torch.no_grad():
        losses, scalars = loss(**batch)
        tokens = torch.cat([ids, codes + task.parts.first_code], 1)
        logits = task.parts.transformer(tokens).logits
        end = int((ids[0] == task.parts.tokenizer.eos_token_id).nonzero()[0])
        words = logits[0, :end].log_softmax(-1)[range(end), ids[0, 1 : end + 1]]
        places = logits[0, 39:-1, loss.codes].log_softmax(-1)[range(64), codes[0]]
    weight = batch["weight"][0] / batch["weight"][0].mean()
    expected = -0.25 * words.mean() - 0.75 * (weight * places).mean()
    assert losses[0] == pytest.approx(expected.item(), rel=1e-4)
    assert scalars["image"] == pytest.approx(np.log(16), rel=0.2)  # nothing is known yet


def test_codes_are_made_once(token_run, task, monkeypatch):
    assert torch.equal(task.codes, encode_codes(load_discrete_vae(token_run), task.films.images))
    monkeypatch.setattr(discrete_vae, "encode_codes", None)
    assert torch.equal(make_task(token_run).codes, task.codes)
    assert (
        make_task(token_run).batch(np.arange(2), ImageRandom(0, [0, 1]))["codes"].dtype
        is torch.int64
    )


def test_the_focus_is_on_the_tokens_at_the_hips(task):
    batch = task.batch(np.arange(2), ImageRandom(0, np.arange(2)))
    weight = batch["weight"].unflatten(1, (8, 8))
    middles = (task.films.landmarks[:2, :, :2] + task.films.landmarks[:2, :, 3:]) / 2
    for image in range(2):
        heaviest = int(weight[image].argmax())
        y, x = heaviest // 8 * 4 + 1.5, heaviest % 8 * 4 + 1.5
        away = np.hypot(*(middles[image] - [x, y]).T).min()
        assert away < 4, "one token has 4 pixels"


def test_batches_follow_the_clock_and_drop_captions(task):
    one, two = (
        task.batch(np.array(indices), ImageRandom(3, np.array(clock)))
        for indices, clock in (([5, 2], [0, 1]), ([2], [1]))
    )
    assert all(torch.equal(one[name][1:], two[name]) for name in one)
    many = task.batch(np.zeros(400, int), ImageRandom(3, np.arange(400)))["ids"]
    dropped = (many == task.null).all(1)
    assert 20 < dropped.sum() < 64
    assert torch.equal(many[~dropped], task.texts[:1].expand(int((~dropped).sum()), -1))


def test_drawing_with_the_cache_is_the_full_forward(parts, samples):
    prompts, seeds = [s.prompt for s in samples[:2]], [5, 6]
    for guidance in (1.0, 2.0):
        drawn = draw_codes(parts, prompts, seeds, **PLAIN | {"guidance": guidance, "top_k": 6})
        ids = text.token_ids(parts.tokenizer, prompts)
        null = text.token_ids(parts.tokenizer, ["", ""])
        codes = drawn.flatten(1) + parts.first_code
        known, none = (
            parts.transformer(torch.cat([t, codes], 1)).logits[:, 39:-1, parts.first_code :][
                ..., :16
            ]
            for t in (ids, null)
        )
        logits = none + guidance * (known - none)
        for i, seed in enumerate(seeds):
            uniform = torch.rand(
                64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
            )
            again = pick(warpers(1.0, 6, 1.0)(None, logits[i]), uniform)
            assert torch.equal(again, drawn[i].flatten())


def test_an_image_does_not_depend_on_its_batch(parts, samples):
    drawer = DallEDrawer(parts)
    for sample in samples[1:3]:
        settings = {name: sample.info[name] for name in PLAIN}
        alone = drawer.draw([sample.prompt], [sample.info["seed"]], resolution=32, **settings)[0]
        assert np.abs(alone.astype(int) - sample.image).max() <= 1
    first, other = draw_codes(parts, [samples[0].prompt] * 2, [1, 2], **PLAIN)
    assert not torch.equal(first, other)


def test_pick_draws_from_the_distribution():
    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf, 0.0, 2.0, -torch.inf]]).expand(50_000, -1)
    uniform = torch.rand(50_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = torch.bincount(pick(logits, uniform), minlength=6) / 50_000
    assert torch.allclose(found, logits[0].softmax(0), atol=0.01)
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert pick(logits[:2], ends).tolist() == [1, 4]


def test_top_k_and_top_p_keep_the_most_probable():
    logits = torch.tensor([[0.4, 0.1, 0.3, 0.2]]).log()

    def kept(*settings):
        return torch.isfinite(warpers(*settings)(None, logits))[0].tolist()

    assert kept(1.0, None, 1.0) == [True] * 4
    assert kept(1.0, 2, 1.0) == [True, False, True, False]
    assert kept(1.0, None, 0.65) == [True, False, True, False]
    assert kept(1.0, None, 0.75) == [True, False, True, True]
    assert kept(1.0, 3, 0.3) == [True, False, False, False]
    assert torch.allclose(warpers(0.5, None, 1.0)(None, logits), logits / 0.5)


def test_the_prompt_decides_the_image(parts):
    prompts = [f"norberg angle left {angle} degrees" for angle in (70.0, 110.0)]
    with torch.no_grad():
        one, other = parts.transformer(text.token_ids(parts.tokenizer, prompts)).logits[:, -1]
    assert not torch.allclose(one, other)


def test_the_export_is_stock(token_run, task):
    folder = token_run.path("dall_e", "export")
    assert not [p for p in folder.rglob("*") if p.suffix in (".bin", ".pt", ".pkl")]
    model = GPT2LMHeadModel.from_pretrained(folder / "transformer")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    ids = text.token_ids(tokenizer, task.films.captions[:2])
    assert torch.equal(ids, task.texts[:2])
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)
    drawn = model.generate(
        ids, max_new_tokens=5, do_sample=False, attention_mask=torch.ones_like(ids), eos_token_id=-1
    )
    assert drawn.shape == (2, 45)


def test_no_export_is_said(tmp_path):
    with pytest.raises(ValueError, match="holds no DALL-E"):
        load_parts(tmp_path)


def test_resuming_is_exact(token_run, tmp_path):
    training = {"images": 12, "batch": 4, "lr": 1e-3, "ema_images": 8, "checkpoint_images": 4}
    training["schedule"] = "constant"
    half, again, straight = (make_task(token_run, training=training) for _ in range(3))
    whole = straight.section.training
    part = whole.model_copy(update={"images": 8})
    for task, length, name in ((half, part, "a"), (again, whole, "a"), (straight, whole, "b")):
        train(task, length, tmp_path / name, seed=3, title=name)
    pairs = zip(
        again.averages["export"].module.parameters(),
        straight.averages["export"].module.parameters(),
        strict=True,
    )
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.slow
def test_the_report_has_the_rows(token_run):
    from hpc_hipgen.pipeline import score_items

    assert token_run.rows() == ["ruler", "round_trip_discrete", "dall_e"]
    assert token_run.config.trained() == ["ruler", "discrete_vae", "dall_e"]
    evaluate.evaluate_items(token_run, score_items(token_run))
    page = report.report(token_run)
    assert "DALL-E" in page.read_text() and "Discrete VAE round trip" in page.read_text()
    metrics = json.loads(token_run.path("report", "metrics.json").read_text())
    assert list(metrics["faithfulness"]) == token_run.rows()
    for row in token_run.rows():
        for side in ("left", "right"):
            found = metrics["faithfulness"][row][side]
            assert found["n"] + found["failed"] == 5
    assert metrics["runtime"]["train-discrete_vae"]["codes_used"] >= 1


def test_samples_say_how_they_were_drawn(samples, token_run):
    asked = token_run.config.dall_e.sampling.model_dump()
    assert all(sample.info.items() >= asked.items() for sample in samples)
    assert samples[0].image.shape == (32, 32)


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("discrete_vae", None, "discrete_vae: needed by dall_e"),
        ("discrete_vae.training", None, "discrete_vae: give either pretrained"),
        ("discrete_vae.pretrained", "/nowhere", "block_out_channels: given, but the pretrained"),
        ("discrete_vae.block_out_channels", [8, 12], "12 is not a multiple of 8"),
        ("discrete_vae.block_out_channels", [8] * 7, "of 64, the stride of the discrete_vae"),
        ("discrete_vae.window", 18, "discrete_vae.window: 18 is not a multiple of 4"),
        ("discrete_vae.window", 64, "discrete_vae.window: 64 is above data.resolution, 32"),
        ("discrete_vae.temperature", [1.0, 0.0], "discrete_vae.temperature"),
        ("dall_e.width", 33, "dall_e.width: 33 is not a multiple of 2, dall_e.heads"),
        ("dall_e.text_length", 39, "dall_e.text_length: 39, but with conditioning 'measurement'"),
        ("dall_e.sampling", {"top_k": 17}, "top_k: 17 is above discrete_vae.codes, 16"),
        ("dall_e.sampling", {"top_p": 0}, "dall_e.sampling.top_p"),
        ("dall_e.sampling", {"top_q": 1}, "unknown key 'dall_e.sampling.top_q'"),
        ("dall_e.training.batch", 500, "batch: 500 is more than"),
    ],
)
def test_a_mistake_is_one_line(token_settings, key, value, words):
    from hpc_hipgen.config import ConfigError

    tree = copy.deepcopy(token_settings)
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        node = node[parent]
    node[last] = value
    if last == "batch":
        node["images"] = value
    with pytest.raises(ConfigError) as error:
        parse_experiment(tree, "x.yaml")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_guidance_needs_dropped_captions(token_settings):
    token_settings["dall_e"] |= {"caption_dropout": 0, "sampling": {"guidance": 2.0}}
    with pytest.raises(ValueError, match="guidance: needs dall_e"):
        parse_experiment(token_settings, "x")


def test_what_a_shard_cost_counts_tokens_and_guidance(token_run):
    note = json.loads(token_run.path("samples", "dall_e", "shard-00000.json").read_text())
    assert note["images"] == 4 and note["evaluations"] == 4 * 8**2 * 2


def test_codes_are_learnt_in_the_order_in_which_they_are_drawn(task):
    codes = task.batch(np.arange(3), ImageRandom(0, np.arange(3)))["codes"]
    assert torch.equal(codes.unflatten(1, (task.parts.grid, task.parts.grid)), task.codes[:3])


def test_the_export_is_the_average(token_run, tmp_path):
    task = make_task(token_run)
    torch.nn.init.constant_(task.averages["export"].module.transformer.ln_f.bias, 2.0)
    task.export(tmp_path)
    assert (load_parts(tmp_path).transformer.transformer.ln_f.bias == 2).all()
