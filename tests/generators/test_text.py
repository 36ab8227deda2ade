"""Captions as tokens: single tokens for measurements, a smooth table, digits for the baseline."""

import copy

import numpy as np
import pytest
import torch

from hpc_hipgen.config import Text
from hpc_hipgen.config.generators import CAPTION_TOKENS
from hpc_hipgen.generators import text
from hpc_hipgen.radiograph.captions import ANGLE_MAX, ANGLE_MIN, PROMPT_CLASSES, caption
from hpc_hipgen.radiograph.geometry import Angles

SMALL = Text(hidden_size=32, layers=1, heads=2)


@pytest.fixture(scope="module")
def plain():
    """Tokenizer and encoder without measurement tokens."""
    tokenizer = text.build_tokenizer(SMALL)
    torch.manual_seed(0)
    return tokenizer, text.build_text_encoder(SMALL, tokenizer)


@pytest.fixture(scope="module")
def measured():
    """Tokenizer and encoder with measurement tokens, not baked."""
    tokenizer = text.build_tokenizer(SMALL)
    torch.manual_seed(0)
    encoder = text.build_text_encoder(SMALL, tokenizer).eval()
    text.install_measurements(encoder, tokenizer)
    return tokenizer, encoder


def all_captions():
    return [
        caption(Angles.of_patient(left=left, right=right), prompt_class)
        for prompt_class in PROMPT_CLASSES
        for left, right in ((ANGLE_MIN, 108.5), (102.5, ANGLE_MAX), (121.5, 117.5))
    ]


def test_phrases_cover_every_caption():
    phrases = text.measurement_phrases()
    assert len({words for words, *_ in phrases}) == len(phrases) == 2 * (141 + 71)
    assert ("left 102.5 degrees", 102.5, 0) in phrases and ("right 98 degrees", 98.0, 1) in phrases


@pytest.mark.parametrize(
    "words, token",
    [
        ("norberg angle left 102.5 degrees, right 98.0 degrees", "left 102.5 degrees"),
        ("Norberg Angle LEFT 102.5 Degrees", "left 102.5 degrees"),
        ("a hip, left 102 degrees", "left 102 degrees"),
        ("right 55.0 degrees.", "right 55.0 degrees"),
        ("(right 125 degrees)", "right 125 degrees"),
    ],
)
def test_a_measurement_is_one_token(measured, words, token):
    tokenizer, _ = measured
    number = tokenizer.convert_tokens_to_ids(token)
    assert number >= len(tokenizer) - len(text.measurement_phrases())
    assert tokenizer(words).input_ids.count(number) == 1
    assert not any(t[0].isdigit() for t in tokenizer.tokenize(words))


@pytest.mark.parametrize(
    "words",
    ["left 102.3 degrees", "left 54.5 degrees", "left 1102.5 degrees", "cleft 102.5 degrees"],
)
def test_other_numbers_are_words(measured, words):
    tokenizer, _ = measured
    assert max(tokenizer(words).input_ids) < len(tokenizer) - len(text.measurement_phrases())


def test_captions_fit(measured, plain):
    for (tokenizer, _), conditioning in ((measured, "measurement"), (plain, "caption")):
        assert tokenizer.model_max_length == Text().max_length
        most = max(len(tokenizer(words).input_ids) for words in all_captions())
        assert most == CAPTION_TOKENS[conditioning] <= tokenizer.model_max_length


def test_digits_are_tokens_of_their_own_without_measurements(plain):
    tokens = plain[0].tokenize("left 102.5 degrees")
    digits = [t.removesuffix("</w>") for t in tokens if t[0].isdigit()]
    assert digits == ["1", "0", "2", "5"]
    assert "".join(t.removesuffix("</w>") for t in tokens) == "left102.5degrees"


def test_the_tokenizer_is_the_same_every_time(plain):
    again = text.build_tokenizer(SMALL)
    assert again.get_vocab() == plain[0].get_vocab()
    assert [again(words).input_ids for words in all_captions()] == [
        plain[0](words).input_ids for words in all_captions()
    ]


def test_every_text_can_be_said(plain):
    for words in [*all_captions(), "Jazz, quickly: 3.7 % (naïve) z"]:
        ids = plain[0](words).input_ids
        said = plain[0].decode(ids, skip_special_tokens=True)
        assert said.replace(" ", "") == words.lower().replace(" ", "")
        assert ids.count(plain[0].eos_token_id) == 1


def test_frequent_pairs_are_merged_first():
    assert text.byte_pairs({"ab": 5, "abc": 1, "x": 9}) == [
        ("a", "b</w>"),
        ("a", "b"),
        ("ab", "c</w>"),
    ]
    assert text.byte_pairs({"zz": 1, "aa": 1}) == [("a", "a</w>"), ("z", "z</w>")]


def test_ids_are_padded_and_cut_as_a_pipeline_does(plain):
    ids = text.token_ids(plain[0], ["", "hips " * 200])
    assert ids.shape == (2, 64) and ids.dtype == torch.int64
    assert (ids[0] == plain[0].eos_token_id).sum() == 63
    assert ids[1, -1] == plain[0].eos_token_id


def test_neighbouring_angles_have_closer_embeddings(measured):
    tokenizer, encoder = measured
    table = encoder.get_input_embeddings().table().detach()
    distance = []
    for step in (0.5, 2.0, 8.0):
        pairs = [
            (table[tokenizer.convert_tokens_to_ids(f"left {a:.1f} degrees")],
             table[tokenizer.convert_tokens_to_ids(f"left {a + step:.1f} degrees")])
            for a in np.arange(60, 115, 2.5)
        ]  # fmt: skip
        distance.append(max(float((a - b).norm()) for a, b in pairs))
    assert distance[0] < 0.5 * distance[1] < 0.5 * distance[2]
    # the sides are kept apart, and both spellings of an angle mean the same
    left, right, short = (
        table[tokenizer.convert_tokens_to_ids(w)]
        for w in ("left 90.0 degrees", "right 90.0 degrees", "left 90 degrees")
    )
    assert torch.equal(left, short) and not torch.equal(left, right)


def test_measurements_are_trained_through_the_table(measured):
    tokenizer, encoder = measured
    encoder.zero_grad()
    encoder(text.token_ids(tokenizer, ["left 90.0 degrees"]))[0].square().mean().backward()
    embedding = encoder.get_input_embeddings()
    assert all(p.grad.abs().sum() > 0 for p in embedding.network.parameters())


def test_baking_and_stock_reloading_change_no_bit(measured, tmp_path):
    tokenizer, encoder = measured
    ids = text.token_ids(tokenizer, [*all_captions(), ""])
    with torch.no_grad():
        computed = encoder(ids)[0]
    table = encoder.get_input_embeddings().table().detach()
    baked = copy.deepcopy(encoder)
    text.bake_measurements(baked)
    text.bake_measurements(baked)  # once is enough, twice does no harm
    assert torch.equal(baked.get_input_embeddings().weight, table)
    assert torch.equal(baked(ids)[0], computed)

    tokenizer.save_pretrained(tmp_path / "tokenizer")
    baked.save_pretrained(tmp_path / "text_encoder")
    stock_tokenizer, stock = text.load_text(tmp_path)
    assert torch.equal(text.token_ids(stock_tokenizer, [*all_captions(), ""]), ids)
    with torch.no_grad():
        assert torch.equal(stock.eval()(ids)[0], computed)
    assert stock.config.vocab_size == len(stock_tokenizer) == len(table)


def test_a_table_that_does_not_fit_its_tokenizer_is_refused(plain):
    tokenizer = text.build_tokenizer(SMALL)
    tokenizer.add_tokens(["an extra word"])
    with pytest.raises(ValueError, match=r"embeddings, its tokenizer .* conditioning=caption"):
        text.install_measurements(text.build_text_encoder(SMALL, plain[0]), tokenizer)


def test_attention_starts_on_the_measurements():
    torch.manual_seed(0)
    tokenizer = text.build_tokenizer(Text())
    encoder = text.build_text_encoder(Text(), tokenizer).eval()
    text.install_measurements(encoder, tokenizer)
    captions = [caption(Angles.of_patient(left=a, right=98.0), 4) for a in (100.0, 110.0)]
    ids = text.token_ids(tokenizer, captions)

    def seen():
        """Share of the states' size in which two captions differ, over the tokens after both."""
        with torch.no_grad():
            states = encoder(ids)[0]
        return float((states[0] - states[1])[20:].std() / states[0][20:].std())

    before = seen()
    text.attend_to_measurements(encoder)
    assert seen() > 3 * before and seen() > 0.2


def test_states_are_computed_once_per_caption(measured):
    tokenizer, encoder = measured
    captions = ["a hip", "left 90 degrees", "a hip"]
    states, rows = text.encode_captions(tokenizer, encoder, captions)
    assert len(states) == 2 and rows[0] == rows[2] != rows[1]
    with torch.no_grad():
        expected = encoder.eval()(text.token_ids(tokenizer, captions))[0]
    assert torch.allclose(states[rows], expected, atol=1e-5)


def test_states_are_computed_on_this_ranks_device(measured, monkeypatch):
    tokenizer, encoder = measured
    here, moved = torch.device("cpu", 0), []
    monkeypatch.setattr(text, "device", lambda: here)
    monkeypatch.setattr(encoder, "to", moved.append)
    text.encode_captions(tokenizer, encoder, ["a hip"])
    assert moved == [here, encoder.device], "and back"


def test_an_encoder_is_fp32_however_it_is_stored(plain, tmp_path):
    tokenizer, encoder = plain
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    copy.deepcopy(encoder).half().save_pretrained(tmp_path / "text_encoder")
    _, loaded = text.load_text(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_a_caption_that_would_be_cut_is_named(plain):
    tokenizer, _ = plain
    with pytest.raises(ValueError, match=r"takes 64: 'hip hip"):
        text.caption_ids(tokenizer, ["a hip", "hip " * 70])
