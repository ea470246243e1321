"""A small pipeline for the tests of text to image: diffusers' own, its folder, and the one that is loaded here."""

import shutil

import diffusers
import pytest
from prompted_models import TINY, save_pipeline

from cipherdm import load_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small pipeline of diffusers' with random weights, of two levels, so that one of them attends to nothing."""
    path = tmp_path_factory.mktemp("pipeline")
    save_pipeline(path, TINY)
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(path, low_cpu_mem_usage=False)
    theirs.set_progress_bar_config(disable=True)
    return theirs, path


@pytest.fixture(scope="module")
def pipeline(folder):
    """diffusers' pipeline, loaded here."""
    return load_pipeline(folder[1])


@pytest.fixture
def broken(folder, tmp_path):
    """A copy of the folder, to be changed."""
    return shutil.copytree(folder[1], tmp_path / "copy")
