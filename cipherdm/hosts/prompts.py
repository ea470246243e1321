"""Text to image with the roles in their own places: an owner registers its U-Net, and a client sends shares of a prompt.

Prompts, noise and pictures stay with the client, who tokenises, embeds and decodes with its own copy of the pipeline's other
components. The parties get shares of embeddings and noise, of one length whatever the prompt is.
"""

import secrets
from collections.abc import Sequence

from ..engine.session import Progress
from ..errors import CipherDMError
from ..protocols import FAST, Protocols
from ..sampling.guidance import BRANCHES
from ..sampling.pipeline import ClientComponents, Pipeline
from ..sampling.prompts import decode_latents, embed_prompts
from ..sampling.sample import Granularity
from ..sampling.text_to_image import TextToImageResult, text_to_image_task
from ..sampling.values import client_values
from .model import Model
from .remote import RemoteCluster
from .sampling import PROMPTED, check_run, described, registrable, requested


def text_to_image_model(
    name: str,
    pipeline: Pipeline,
    *,
    pictures: int = 1,
    steps: int = 20,
    scheduler: str = "ddim",
    eta: float = 0.0,
    guidance_scale: float = 7.5,
    protocols: Protocols = FAST,
    granularity: Granularity = "block",
) -> Model:
    """What an owner registers so that clients can draw from prompts.

    The weights are shared. Public are the architecture, the schedule, guidance_scale, the number of pictures a run and the
    protocols. Pictures to start from are not supported: they would need a schedule of their own.

    Args:
        name: what clients ask for.
        pipeline: whose U-Net it is.
        pictures: how many a run draws. A client asks for a multiple of it.
        steps, scheduler, eta, guidance_scale, protocols, granularity: as in `cipherdm.text_to_image`.

    Raises:
        CipherDMError: as `cipherdm.text_to_image`, for the arguments.
    """
    check_run(pictures, protocols)
    settings = {"steps": steps, "scheduler": scheduler, "eta": eta, "guidance_scale": guidance_scale}
    # The owner has no prompts and no noise: what stands for them here gives shapes, and is not sent.
    task = text_to_image_task(pipeline, [""] * pictures, protocols=protocols, **settings)
    about = {"kind": PROMPTED, "branches": task.shape.branches, **settings}
    return registrable(name, task, pipeline.unet, granularity, about)


def text_to_image_of(
    cluster: RemoteCluster,
    name: str,
    components: ClientComponents,
    prompts: Sequence[str],
    *,
    negative_prompts: Sequence[str] | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
) -> TextToImageResult:
    """Ask for the pictures of prompts. Only this process sees prompts, noise, latents and pictures.

    Args:
        cluster: the three hosts, called as a client.
        name: of the model.
        components: the client's own, of the pipeline that the model belongs to.
        prompts: one for each picture, as many as a run draws or a multiple.
        negative_prompts: one for each picture; empty by default. A model without guidance takes none.
        seed: of the noise; unpredictable by default, as it should be in earnest.
        progress: see `RemoteCluster.request`.

    Raises:
        CipherDMError: the model is not there or is of another kind, the prompts or components do not fit it, or the request
            fails.
    """
    shape, schedule, _ = described(cluster, name, PROMPTED)
    if not prompts or len(prompts) % shape.batch:
        raise CipherDMError(
            f"{name} draws {shape.batch} pictures a run; give a multiple of that, not {len(prompts)} prompts."
        )
    guided = shape.branches == BRANCHES
    if negative_prompts is not None and not guided:
        raise CipherDMError(f"{name} draws without guidance; leave negative prompts out.")
    width = components.text_encoder.config.hidden_size
    if width != shape.config.cross_attention_dim:
        raise CipherDMError(
            f"the text encoder's width is {width}, and {name} attends to {shape.config.cross_attention_dim}: "
            "take the components of the pipeline that it belongs to."
        )
    seed = secrets.randbits(64) if seed is None else seed
    embeddings = embed_prompts(components, prompts, negative_prompts, guided=guided)
    of_branches = embeddings.reshape(shape.branches, len(prompts), *embeddings.shape[1:])
    batches = (
        client_values(
            None,
            schedule,
            shape,
            seed + first,
            prompts=of_branches[:, first : first + shape.batch].reshape(-1, *embeddings.shape[1:]),
        )
        for first in range(0, len(prompts), shape.batch)
    )
    result = requested(cluster, name, shape, batches, progress)
    return TextToImageResult(decode_latents(components, result.images), result.images, result.cost)
