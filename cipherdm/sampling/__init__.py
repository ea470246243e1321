"""The denoising step, and sampling in plaintext and on shares."""

import lazy_loader

from .roles import Task
from .sample import (
    Granularity,
    SamplingResult,
    Settings,
    engine_for,
    make_task,
    plaintext_steps,
    sample,
    sampling_nodes,
)

# Imported when they are first used: prompts need PyTorch, transformers and diffusers.
__getattr__, _, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "pipeline": ["decode_latents", "embed_prompts", "read_captions"],
        "text_to_image": ["text_to_image_task"],
    },
)
