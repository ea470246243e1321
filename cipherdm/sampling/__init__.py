"""The denoising step, and sampling in plaintext and on shares."""

import lazy_loader

from .roles import Task as Task
from .sample import Granularity as Granularity
from .sample import SamplingResult as SamplingResult
from .sample import Settings as Settings
from .sample import engine_for as engine_for
from .sample import make_task as make_task
from .sample import plaintext_steps as plaintext_steps
from .sample import sample as sample
from .sample import sampling_nodes as sampling_nodes

# Imported when they are first used: prompts need PyTorch, transformers and diffusers.
__getattr__, _, _ = lazy_loader.attach(
    __name__, submod_attrs={"pipeline": ["decode_latents", "embed_prompts"], "text_to_image": ["text_to_image_task"]}
)
