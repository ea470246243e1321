"""What is measured as a step of a model that takes prompts."""

from dataclasses import replace

import numpy as np
import pytest
from prompted_models import ONE_LEVEL, save_pipeline
from small import ONE_LEVEL as SMALL

from cipherdm import CipherDMError, load_pipeline
from cipherdm.models import init_unet
from cipherdm.protocols import DIRECT
from cipherdm.sampling.pipeline import embed_prompts
from cipherdm_experiments.variants import DEFAULT_NAMES, batch_task, default_names


def test_a_batch_of_prompts_is_empty_and_guided(tmp_path):
    save_pipeline(tmp_path, replace(ONE_LEVEL, mid_block_type=None))
    pipeline = load_pipeline(tmp_path)
    task = batch_task(pipeline.unet, DIRECT, batch=3, steps=2)
    assert (task.shape.batch, task.shape.branches, task.shape.steps) == (3, 2, 2)
    assert task.client["sample"].shape == (3, 4, 8, 8)
    expected = embed_prompts(pipeline, ["", "", ""])
    np.testing.assert_array_equal(task.client["encoder_hidden_states"], expected)
    with pytest.raises(CipherDMError, match="steps must be between"):
        batch_task(pipeline.unet, DIRECT, batch=1, steps=0)


def test_by_default_all_sets_that_compute_the_model_are_measured():
    assert default_names(init_unet(SMALL)) == DEFAULT_NAMES
    assert set(DEFAULT_NAMES) - set(default_names(init_unet(ONE_LEVEL))) == {"fast-guarded"}
