"""The CLIP of unCLIP: its loss, its pixels, its export, and what it hands to the prior."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.models.clip.image_processing_clip import CLIPImageProcessor
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from hpc_hipgen.config import parse_experiment
from hpc_hipgen.generators.clip import (
    CLIPTask,
    clip_pixels,
    encode_captions,
    group_loss,
    image_embeddings,
    load_parts,
)
from hpc_hipgen.radiograph.layouts import read_manifest
from hpc_hipgen.training.clock import ImageRandom


@pytest.fixture
def make_task(embedding_run, embedding_settings):
    """Makes a task; settings of its section can be changed."""

    def make(**section):
        embedding_settings["clip"].update(section)
        config = parse_experiment(embedding_settings, "test")
        folder = embedding_run.path("data")
        return CLIPTask(config, *(read_manifest(folder, s) for s in ("train", "validation")))

    return make


@pytest.fixture(scope="module")
def parts(embedding_run):
    return load_parts(embedding_run.path("clip", "export"))


def test_the_loss_of_one_group_is_clips():
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    found = group_loss(logits, torch.arange(6), group=6).mean()
    assert torch.allclose(found, image_text_contrastive_loss(logits))


def test_only_the_pairs_of_a_group_are_contrasted():
    """So accumulation and ranks, which hold whole groups, change nothing."""
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    numbers = torch.arange(6)
    both = group_loss(logits, numbers, group=3)
    alone = [group_loss(logits[p, p], numbers[p], group=3) for p in (slice(3), slice(3, 6))]
    assert torch.allclose(both, torch.cat(alone))


def test_views_of_one_caption_are_not_contrasted():
    """Two views of a film have the same caption: neither is wrong for the other's."""
    numbers = torch.tensor([7, 7, 2])
    fair = torch.tensor([[5.0, 5.0, -30.0], [5.0, 5.0, -30.0], [-30.0, -30.0, 5.0]])
    losses = group_loss(fair, numbers, group=3)
    assert torch.allclose(losses, torch.tensor([2.0, 2.0, 1.0]).log(), atol=1e-4)
    assert group_loss(fair, torch.arange(3), group=3).sum() == pytest.approx(float(losses.sum()))
    picky = fair.clone()
    picky[0, 1] = picky[1, 0] = -5.0
    assert group_loss(picky, numbers, group=3)[0] > losses[0] + 3


@pytest.mark.parametrize("size", [32, 48])
def test_pixels_are_those_of_clips_image_processor(size):
    image = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    image = np.array(Image.fromarray(image).resize((48, 48), Image.Resampling.BICUBIC))
    shape = {"height": size, "width": size}
    processor = CLIPImageProcessor(size=shape, crop_size=shape)
    expected = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"]
    # resizing there rounds to whole grey levels
    assert torch.allclose(clip_pixels(image[None], size), expected, atol=0.03)


def test_a_batch_is_a_function_of_its_clock(make_task):
    task = make_task()
    batch = task.batch(np.arange(4), ImageRandom(0, np.arange(4)))
    assert batch["captions"].tolist()[:2] == [batch["captions"][0]] * 2, "two views of a film"
    assert len(set(batch["captions"].tolist())) == 2
    degrees = batch["angles"] * task.spread + task.mean
    assert torch.allclose(degrees[:, 0], torch.tensor(task.films.patient_left[:4]).float())
    assert torch.allclose(degrees[:, 1], torch.tensor(task.films.patient_right[:4]).float())


def test_angles_are_read_off_the_image_embedding(make_task):
    task = make_task(angle_weight=0.0)
    inputs = task.batch(np.arange(4), ImageRandom(0, np.arange(4)))
    with torch.no_grad():
        plain, scalars = task.module(**inputs)
        weighted, _ = make_task(angle_weight=0.5).module(**inputs)
    extra = float((weighted - plain).mean())
    assert 0.5 * (float(scalars["angle_rms_degrees"]) / float(task.spread)) ** 2 == pytest.approx(
        extra, rel=1e-3
    )
    loss, _ = make_task().module(**inputs)
    loss.mean().backward()


def test_a_stock_clip_loads_the_export(embedding_run, parts):
    folder = embedding_run.path("clip", "export")
    model = CLIPModel.from_pretrained(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    assert model.text_model.get_input_embeddings().weight.shape[0] == len(tokenizer)
    assert len(tokenizer("left 102.5 degrees").input_ids) == 3, "one token"
    assert model.logit_scale.shape == ()
    films = read_manifest(embedding_run.path("data"), "train")
    tokens = tokenizer(films.captions[:2], padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**tokens, pixel_values=clip_pixels(films.images[:2], 32))
    embeddings = image_embeddings(parts.model, films.images)
    unit = torch.nn.functional.normalize(embeddings[:2], dim=-1)
    assert torch.allclose(output.image_embeds, unit, atol=1e-5)
    assert float(embeddings.std(0).square().mean().sqrt()) == pytest.approx(1, abs=1e-3)


def test_the_prior_is_told_what_a_stock_text_encoder_says(embedding_run, parts):
    captions = ["left 90.0 degrees", ""]
    found = encode_captions(parts, captions, batch=1)
    encoder = CLIPTextModelWithProjection.from_pretrained(embedding_run.path("clip", "export"))
    tokens = parts.tokenizer(captions, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        output = encoder(tokens.input_ids)
    assert torch.allclose(found.pooled, output.text_embeds, atol=1e-5)
    assert torch.allclose(found.states, output.last_hidden_state, atol=1e-5)
    assert found.mask.sum(1).tolist() == [3, 2]


def test_a_clip_without_one_width_is_refused(parts, tmp_path):
    tree = parts.model.config.to_dict() | {"projection_dim": 16}
    for half in ("text_config", "vision_config"):
        tree[half] = tree[half] | {"projection_dim": 16}
    CLIPModel(CLIPConfig(**tree)).save_pretrained(tmp_path)
    parts.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="text states of width 32 and embeddings of 16"):
        load_parts(tmp_path)


def test_the_export_is_the_average_and_states_its_error_on_held_out_films(make_task, tmp_path):
    task = make_task()
    networks = task.averages["export"].module
    torch.nn.init.constant_(networks["clip"].vision_model.post_layernorm.bias, 2.0)
    torch.nn.init.zeros_(networks["angles"].weight)
    torch.nn.init.constant_(networks["angles"].bias, 1.5)
    said = task.export(tmp_path)
    assert (load_parts(tmp_path).model.vision_model.post_layernorm.bias == 2).all()
    held_out = task.validation
    angles = np.stack([held_out.patient_left, held_out.patient_right])
    expected = abs(float(task.mean) + 1.5 * float(task.spread) - angles).mean()
    assert said["validation_angle_mae"] == pytest.approx(expected, rel=1e-4)
