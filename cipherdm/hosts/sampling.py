"""Sampling with the roles in their own places: an owner's U-Net as a registered model, and a client that asks for images."""

# FROM cipherdm.hosts.prompts:
# Text to image with the roles in their own places: an owner registers its U-Net, and a client sends shares of a prompt.
#
# Prompts, noise and pictures stay with the client, who tokenises, embeds and decodes with its own copy of the pipeline's other
# components. The parties get shares of embeddings and noise, of one length whatever the prompt is.

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..engine import Spec, compile_plan
from ..errors import CipherDMError
from ..models import UNet, UNetConditionConfig, UNetConfig
from ..owner import WeightsLayout
from ..progress import Progress
from ..protocols import FAST, Protocols, named
from ..protocols.fixed import decode
from ..sampling import Task, engine_for, make_task, sampling_nodes
from ..sampling.pipeline import ClientComponents, Pipeline, decode_latents, embed_prompts
from ..sampling.roles import Values, client_values
from ..sampling.sample import Granularity, SamplingResult
from ..sampling.steps import StepShape
from ..sampling.text_to_image import TextToImageResult, text_to_image_task
from ..schedules import BRANCHES, Schedule, make_schedule
from .model import Model
from .remote import RemoteCluster

_KIND = "unet2d sampling, version 1"

PROMPTED = "text to image, version 1"

_HINTS = {_KIND: " Leave prompts out, and give labels if it has classes.", PROMPTED: " Give prompts."}


def sampling_model(
    name: str,
    unet: UNet,
    *,
    pictures: int = 1,
    steps: int = 20,
    scheduler: str = "ddim",
    eta: float = 0.0,
    clip: bool = False,
    protocols: Protocols = FAST,
    granularity: Granularity = "step",
) -> Model:
    """What an owner registers so that clients can sample from its U-Net.

    The weights, and what the owner computes from them beforehand, are shared. The architecture, the schedule, the number of
    pictures a run and the protocols are public: the parties need them to compute, and clients to draw their noise.

    Args:
        name: what clients ask for.
        unet: the model, with its scheduler's configuration.
        pictures: how many a run draws. A client asks for a multiple of it.
        steps, scheduler, eta, clip, protocols, granularity: as in `cipherdm.sample`.

    Raises:
        CipherDMError: as `cipherdm.sample`, for the arguments.
    """
    check_run(pictures, protocols)
    # The owner has no labels and no noise: what stands for them here gives shapes, and is not sent.
    classes = getattr(unet.config, "num_class_embeds", None)
    who = {"count": pictures} if classes is None else {"labels": [0] * pictures}
    settings = {"steps": steps, "scheduler": scheduler, "eta": eta, "clip": clip}
    task = make_task(unet, protocols=protocols, **who, **settings)
    return registrable(name, task, unet, granularity, settings | {"kind": _KIND})


def registrable(name: str, task: Task, unet: UNet, granularity: Granularity, settings: Mapping[str, Any]) -> Model:
    """A task as a model to register: of what its client brings, only the shapes are kept.

    Args:
        name: what clients ask for.
        task: made with `ring=True`.
        unet: whose architecture and scheduler clients are told of.
        granularity: what one program computes.
        settings: what else clients need to know.
    """
    plan = compile_plan(sampling_nodes(task.shape, granularity), task.specs, keep=["sample"])
    about = {
        "config": unet.config.to_diffusers(),
        "scheduler_config": dict(unet.scheduler_config),
        "protocols": task.shape.protocols.name,
        "pictures": task.shape.batch,
        **settings,
    }
    inputs = {input_name: Spec.of(np.asarray(array)) for input_name, array in task.client.items()}
    return Model(name, plan, task.owner, inputs, ("sample",), task.public, engine_for(task.shape.protocols), about)


def images_of(
    cluster: RemoteCluster,
    name: str,
    *,
    labels: Sequence[int] | None = None,
    count: int | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
) -> SamplingResult:
    """Ask for images of a registered model. Only this process sees labels, noise and images.

    Args:
        cluster: the three hosts, called as a client.
        name: of the model.
        labels: one class a picture, for conditional models.
        count: how many pictures, for models without classes; as many as one run draws by default.
        seed: of the noise; unpredictable by default, as it should be in earnest.
        progress: see `RemoteCluster.request`.

    Raises:
        CipherDMError: the model is not there or is of another kind, labels are wrong, or the request fails.
    """
    shape, schedule, _ = described(cluster, name, _KIND)
    pictures = shape.batch
    conditional = shape.config.num_class_embeds is not None
    if conditional != bool(labels):
        raise CipherDMError(f"{name} {'needs labels' if conditional else 'has no classes: leave the labels out'}.")
    wanted = len(labels) if conditional else pictures if count is None else count
    if wanted < 1 or wanted % pictures or (conditional and count not in (None, wanted)):
        raise CipherDMError(f"{name} draws {pictures} pictures a run; ask for a multiple of that, not {wanted}.")
    seed = secrets.randbits(64) if seed is None else seed
    batches = (
        client_values(list(labels[first : first + pictures]) if conditional else None, schedule, shape, seed + first)
        for first in range(0, wanted, pictures)
    )
    return requested(cluster, name, shape, batches, progress)


def requested(
    cluster: RemoteCluster, name: str, shape: StepShape, batches: Iterable[Values], progress: Progress | None
) -> SamplingResult:
    """What a registered model samples from a client's values, one run for each batch of pictures.

    Raises:
        CipherDMError: a request fails.
    """
    samples, cost = [], None
    for inputs in batches:
        answer = cluster.request(name, inputs, progress)
        samples.append(_decoded(answer.outputs["sample"], shape))
        cost = answer.cost if cost is None else cost + answer.cost
    return SamplingResult(np.concatenate(samples), cost)


def check_run(pictures: int, protocols: Protocols) -> None:
    """Raises CipherDMError for a run of no pictures, or under a set of protocols that has no name."""
    if pictures < 1:
        raise CipherDMError(f"a run draws at least one picture, not {pictures}.")
    if named(protocols.name) != protocols:
        raise CipherDMError(
            f"{protocols.name} is not the set of protocols of this name; clients know sets by their names only."
        )


def described(cluster: RemoteCluster, name: str, kind: str) -> tuple[StepShape, Schedule, Mapping[str, Any]]:
    """What a client is told of a registered model: the public shape of a step, the schedule, and the rest.

    Raises:
        CipherDMError: there is no such model, or it is of another kind.
    """
    models = cluster.models()
    if name not in models:
        raise CipherDMError(f"there is no model {name!r}; there is: {', '.join(sorted(models)) or 'none yet'}.")
    about: Mapping[str, Any] = json.loads(models[name].about)
    if about.get("kind") != kind:
        wanted = ", ".join(item.name for item in models[name].inputs)
        raise CipherDMError(
            f"{name} is no model for this request: it takes {wanted}.{_HINTS.get(about.get('kind'), '')}"
        )
    schedule = make_schedule(
        about["scheduler_config"], about["scheduler"], about["steps"], eta=about["eta"], clip=about.get("clip", False)
    )
    config = UNetConditionConfig if kind == PROMPTED else UNetConfig
    shape = StepShape(
        config.from_diffusers(about["config"]),
        named(about["protocols"]),
        WeightsLayout((), (), ()),  # which a client has no need of
        schedule.steps,
        about["pictures"],
        schedule.noisy,
        schedule.clip,
        ring=True,
        multistep=schedule.multistep,
        branches=about.get("branches", 1),
    )
    return shape, schedule, about


def _decoded(samples: np.ndarray, shape: StepShape) -> np.ndarray:
    """What was sampled, as real numbers."""
    bits = shape.protocols.value_bits
    return samples if bits is None else decode(samples, bits, shape.ring)


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
