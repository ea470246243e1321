"""Hints of composed pictures, and the score of pictures that follow them or do not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion

from cipherdm.datasets import load_mnist
from cipherdm_experiments.training.control.hints import client_examples, controlled, ink_of, outline
from cipherdm_experiments.training.control.score import followed
from cipherdm_experiments.training.sd_mini.captions import balanced_captions
from cipherdm_experiments.training.sd_mini.pictures import Source, painted, rgb


@pytest.fixture(scope="module")
def source():
    return Source.of(load_mnist("test"))


def test_ink_is_read_back_from_pictures():
    captions = balanced_captions(40)
    ink = torch.rand(40, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    white = [replace(caption, colour="white", background="black") for caption in captions]
    coloured, grey = (painted(ink, each, np.random.default_rng(1)) for each in (captions, white))
    wanted = (grey[:, :1] - rgb("black")[0]) / (rgb("white")[0] - rgb("black")[0])
    torch.testing.assert_close(ink_of(coloured, captions), wanted, rtol=0, atol=1e-5)
    far = ink_of(-10 * coloured, captions)
    assert far.min() >= 0 and far.max() <= 1


def test_outlines_are_the_mask_minus_its_erosion():
    ink = torch.rand(5, 1, 20, 24, generator=torch.Generator().manual_seed(0)).sqrt()
    ink[0] = 1.0
    for found, each in zip(outline(ink), ink, strict=True):
        mask = (each[0] > 0.5).numpy()
        wanted = mask & ~binary_erosion(mask, np.ones((3, 3)))
        assert np.array_equal(found[0].numpy(), wanted)


def test_the_score_knows_who_follows(source):
    captions = balanced_captions(30)
    pictures, hints = controlled(source, captions, np.random.default_rng(0))
    inks = ink_of(pictures, captions)
    assert followed(pictures, hints, inks, captions) == pytest.approx({"iou": 1.0, "ssim": 1.0})
    others, _ = controlled(source, captions, np.random.default_rng(9))
    worse = followed(others, hints, inks, captions)
    assert worse["iou"] < 0.6 and worse["ssim"] < 0.8
    assert hints.shape == (30, 3, 32, 32) and set(hints.unique().tolist()) == {0.0, 1.0}


def test_a_client_brings_pictures_hints_and_captions(source):
    brought = client_examples(source, 1200, np.random.default_rng(0))
    assert brought.pictures.shape == brought.hints.shape == (1200, 32, 32, 3) and len(set(brought.captions)) > 500
    pictures, hints, captions = brought.batch(8, np.random.default_rng(0))
    assert pictures.min() >= -1 and hints.max() == 1 and len(captions) == 8
