"""sd-mini's captions, the pictures composed for them, its tokenizer, and the reader that tells what a picture shows."""

import ast
import json
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from transformers import CLIPTokenizer

from cipherdm.datasets import load_mnist
from cipherdm.errors import CipherDMError
from cipherdm_experiments.training.sd_mini.captions import (
    COLOURS,
    PLACES,
    Caption,
    all_captions,
    balanced_captions,
    vocabulary,
)
from cipherdm_experiments.training.sd_mini.pictures import Source, compose, placed, rgb, shift
from cipherdm_experiments.training.sd_mini.reader import Reading, agreement, as_mnist, middle_of, read
from cipherdm_experiments.training.sd_mini.text import build_tokenizer, caption_answers, save_tokenizer, token_ids

SEVEN = Caption("small", "red", 7, "blue")


@pytest.fixture(scope="module")
def source():
    return Source.of(load_mnist("test"))


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(16)


# Captions


def test_captions_in_words():
    assert SEVEN.text == "a small red seven on a blue background"
    assert replace(SEVEN, place="at the top left").text == "a small red seven at the top left on a blue background"
    texts = {caption.text for caption in all_captions()}
    assert len(texts) == len(all_captions()) == 2 * 6 * 5 * 10 * 6


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": "huge"}, "no size 'huge'.*'small', 'large'"),
        ({"digit": 10}, "no digit 10"),
        ({"colour": "pink"}, "no colour 'pink'.*'red'"),
        ({"place": "left"}, "no place 'left'.*'at the top left'"),
        ({"background": "red"}, "red digit on a red background cannot be seen"),
    ],
)
def test_captions_that_there_are_not(changes, words):
    with pytest.raises(CipherDMError, match=words):
        replace(SEVEN, **changes)


def test_balanced_captions_have_every_part_as_often_as_its_others():
    captions = balanced_captions(600, seed=3)
    for name, choices in (("digit", 10), ("size", 2), ("place", 6), ("colour", 6), ("background", 6)):
        counts = Counter(getattr(caption, name) for caption in captions)
        assert set(counts.values()) == {600 // choices}, name
    assert captions != balanced_captions(600, seed=4)


# Pictures


def test_placing_is_bilinear_reading_at_two_by_two_points_a_pixel(source):
    rows, scales, shifts = [0, 5], torch.tensor([0.75, 1.2]), torch.tensor([[5.5, -3.25], [-2.0, 1.0]])
    for row, scale, (right, down), ours in zip(
        rows, scales.tolist(), shifts.tolist(), placed(source.ink[rows], scales, shifts), strict=True
    ):
        fine = (np.arange(64) + 0.5) / 2 - 16  # from the picture's middle
        y, x = (((fine - moved) / scale + 14) for moved in (down, right))
        points = np.meshgrid(y, x, indexing="ij")
        expected = map_coordinates(source.ink[row, 0].numpy(), points, order=1, mode="constant")
        np.testing.assert_allclose(ours[0].numpy(), expected.reshape(32, 2, 32, 2).mean((1, 3)), atol=1e-5)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("size", ["small", "large"])
def test_a_digit_has_its_size_and_place_and_both_colours(source, size, place):
    caption = Caption(size, "yellow", 8, "blue", place)
    pictures = compose(source, [caption] * 40, np.random.default_rng(0))
    assert pictures.shape == (40, 3, 32, 32) and pictures.abs().max() <= 1
    mixture = (pictures - rgb("blue")[:, None, None]) / (rgb("yellow") - rgb("blue"))[:, None, None]
    ink = mixture[:, 0]
    torch.testing.assert_close(mixture, ink[:, None].expand_as(mixture), atol=1e-4, rtol=0)
    assert ink.amax((1, 2)).min() > 0.8 and ink.amin((1, 2)).abs().max() < 1e-4
    np.testing.assert_allclose(middle_of(ink).mean(0).numpy(), shift(size, place), atol=0.6)
    # Digits of MNIST are 20 pixels on their longer side, which for an eight is its height.
    heights = (ink.amax(2) > 0.2).sum(1).float()
    assert heights.mean().item() == pytest.approx({"small": 15, "large": 23}[size], abs=1.2)


def test_without_a_place_a_digit_may_be_anywhere(source):
    pictures = compose(source, [replace(SEVEN, colour="white", background="black")] * 60, np.random.default_rng(0))
    middles = middle_of(pictures.mean(1) - pictures.mean(1).amin((1, 2), keepdim=True))
    quadrants = Counter(map(tuple, (middles / 4).round().sign().int().tolist()))
    assert len(quadrants) >= 5


# Tokens


def test_every_word_is_one_token_and_every_caption_fits(tokenizer):
    longest = max(len(caption.text.split()) for caption in all_captions())
    for word in vocabulary():
        assert tokenizer.convert_ids_to_tokens(tokenizer(word).input_ids)[1:-1] == [f"{word}</w>"]
    assert longest + 2 <= tokenizer.model_max_length
    ids = token_ids(tokenizer, [SEVEN.text, ""])
    assert ids.shape == (2, 16)
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == SEVEN.text
    assert ids[1].tolist() == [tokenizer.bos_token_id] + 15 * [tokenizer.eos_token_id]


def test_a_saved_tokenizer_is_the_same_from_either_kind_of_file(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    whole = CLIPTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    merges = [tuple(line.split()) for line in (tmp_path / "merges.txt").read_text().splitlines()[1:]]
    parts = CLIPTokenizer(json.loads((tmp_path / "vocab.json").read_text()), merges, model_max_length=16)
    for text in (SEVEN.text, "A LARGE white two, and a dog"):
        assert whole(text).input_ids == parts(text).input_ids == tokenizer(text).input_ids
    assert whole.model_max_length == 16


def test_tokens_are_numbered_alike_in_every_process(tokenizer):
    """A training that is resumed reads captions with the tokenizer of another process."""
    module = "cipherdm_experiments.training.sd_mini.text"
    program = f"from {module} import build_tokenizer; print(build_tokenizer(16).get_vocab())"
    for _ in range(2):
        other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert ast.literal_eval(other.stdout) == tokenizer.get_vocab()


def test_what_a_token_is_expected_to_tell_follows_from_the_tokens_before_it(tokenizer):
    """The text model is causal: captions that begin alike must have the same answers as far as they are alike."""
    captions = all_captions()
    ids = token_ids(tokenizer, [caption.text for caption in captions]).numpy()
    answers, known = (array.numpy() for array in caption_answers(captions, 16))
    assert known[:, -1].all() and not known[:, 1].any()
    for last in range(16):
        seen = defaultdict(set)
        for row, begin in enumerate(map(bytes, ids[:, : last + 1].astype(np.uint8))):
            seen[begin].add((tuple(known[row, last]), tuple(np.where(known[row, last], answers[row], -1))))
        assert all(len(variants) == 1 for variants in seen.values()), last


# Reading


def test_reading_finds_what_was_composed(source):
    captions = balanced_captions(300, seed=1)
    found = agreement(read(compose(source, captions, np.random.default_rng(1))), captions)
    assert found["colour"] == found["background"] == 1
    assert found["size"] > 0.99 and found["place"] > 0.97
    # MNIST's LeNet, untaught: the one that judges the model is taught both sizes.
    assert found["digit"] > 0.85


def test_ink_comes_back_as_mnist_has_it(source):
    ink = placed(source.ink[:50], torch.full((50,), 1.15), torch.tensor([[2.0, -1.0]]).expand(50, 2))[:, 0]
    again = as_mnist(ink, middle_of(ink), torch.full((50,), 1.15))
    original = 2 * source.ink[:50] - 1
    moved = [original.roll(by, dims) for by in (-1, 1) for dims in (2, 3)]
    near, *far = [(again - other).abs().mean() for other in (original, *moved)]
    assert near < 0.6 * min(far)  # MNIST moves digits by whole pixels, this by fractions: less than one pixel off


@given(st.permutations(sorted(COLOURS)), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_colours_are_read_through_noise(source, colours, seed):
    colour, background, *_ = colours
    generator = np.random.default_rng(seed)
    pictures = compose(source, [Caption("large", colour, 5, background)], generator)
    noisy = (pictures + 0.1 * torch.from_numpy(generator.standard_normal(pictures.shape, np.float32))).clamp(-1, 1)
    (reading,) = read(noisy)
    assert (reading.colour, reading.background) == (colour, background)


def test_what_cannot_be_told_is_none(source):
    plain = rgb("blue")[:, None, None].expand(3, 32, 32)
    grey = torch.zeros(3, 32, 32)  # as far from every colour as can be
    half = plain.clone()
    half[:, 8:24, 8:24] = 0.0
    readings = read(torch.stack([plain, grey, half]))
    assert readings[0] == Reading(None, None, None, None, "blue")
    assert readings[1].background is None and readings[1].digit is None
    assert readings[2].background == "blue"
    with pytest.raises(CipherDMError, match="not finite"):
        read(torch.full((1, 3, 32, 32), torch.nan))
    with pytest.raises(CipherDMError, match=r"shape \[1, 1, 28, 28\]"):
        read(torch.zeros(1, 1, 28, 28))


def test_agreement_counts_places_only_where_they_are_asked_for():
    asked = [SEVEN, replace(SEVEN, place="at the top left")]
    right = Reading("small", "red", 7, "at the top right", "blue")
    assert agreement([right, right], asked) == {
        "digit": 1, "colour": 1, "background": 1, "size": 1, "all": 0.5, "place": 0,
    }  # fmt: skip
    wrong = replace(right, digit=1, colour=None)
    found = agreement([right, wrong], [SEVEN, SEVEN])
    assert (found["digit"], found["colour"], found["all"]) == (0.5, 0.5, 0.5) and "place" not in found
