"""The sampling run whose steps are measured, for any kind of model."""

from ..models import UNet, UNetConditionConfig
from ..protocols import Protocols
from ..sampling import Task, make_task


def batch_task(unet: UNet, protocols: Protocols, batch: int, steps: int) -> Task:
    """A DDIM run of `steps` steps for a batch of pictures, with labels 0, 1, ... again and again, or guided empty prompts.

    Raises:
        CipherDMError: as `make_task`; as `load_pipeline`, for a model that takes prompts.
    """
    if takes_prompts(unet):
        # transformers take seconds to import.
        from ..sampling.pipeline import load_pipeline
        from ..sampling.text_to_image import text_to_image_task

        return text_to_image_task(load_pipeline(unet.folder), [""] * batch, steps=steps, protocols=protocols)
    classes = unet.config.num_class_embeds
    pictures = {"count": batch} if classes is None else {"labels": [i % classes for i in range(batch)]}
    return make_task(unet, steps=steps, protocols=protocols, **pictures)


def takes_prompts(unet: UNet) -> bool:
    """Whether a model attends to prompts."""
    return isinstance(unet.config, UNetConditionConfig)
