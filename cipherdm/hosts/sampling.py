"""Sampling with the roles in their own places: an owner registers its model, and a client asks for images.

Labels, prompts, noise and images stay with the client. For prompts it tokenises, embeds and decodes with its own copy of the
pipeline's other components. The parties get shares, whose sizes do not depend on what the labels or prompts are.
"""

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..engine import Plan, compile_plan
from ..errors import CipherDMError, check_whole
from ..models import CONFIGS, ControlledConfig, ControlNetConfig, UNet, sampling_defaults, with_control
from ..models.transformer import Transformer
from ..owner import WeightsLayout
from ..progress import Progress
from ..protocols import FAST, Protocols, named
from ..sampling import engine_for, make_task, sampling_nodes
from ..sampling.pipeline import ClientComponents, Pipeline, blank_hints, checked_hints, decode_latents, embed_prompts
from ..sampling.rings import walking_of
from ..sampling.roles import Task, client_values, whole_labels
from ..sampling.sample import Granularity, SamplingResult, check_sample
from ..sampling.steps import MEMORY, StepShape
from ..sampling.text_to_image import text_to_image_task
from ..schedules import BRANCHES, Schedule, make_schedule, scheduler_of
from .model import Model, Together
from .refusals import shown
from .remote import RemoteCluster

# Kinds of registered models, among the public facts of each.
_LABELS, _PROMPTS = "unet2d sampling, version 1", "text to image, version 1"
_HINTS = {_LABELS: " Leave prompts out, and give labels if it has classes.", _PROMPTS: " Give prompts."}


def sampling_model(
    name: str,
    model: UNet | Pipeline,
    *,
    batch: int = 1,
    steps: int | None = None,
    start: int = 0,
    reuse: int = 1,
    scheduler: str | None = None,
    eta: float = 0.0,
    clip: bool = False,
    guidance_scale: float | None = None,
    conditioning_scale: float = 1.0,
    protocols: Protocols | str = FAST,
    granularity: Granularity | None = None,
    together: int = 1,
    progress: Progress | None = None,
) -> Model:
    """Return a model that clients can sample from once it is registered, with labels or with prompts.

    The weights, and what the owner computes from them beforehand, are shared. Public are the architecture, the schedule, the
    guidance scale, the number of images per run and the protocols: parties need them to compute, clients to draw their noise.
    Images to start from are not supported, because they would need a schedule of their own.

    Args:
        name: name by which clients ask for it.
        model: the U-Net with its scheduler's configuration, or a pipeline for a model with prompts.
        batch: number of images per run. A client asks for a multiple of it.
        steps, start, reuse, scheduler, eta, protocols: see `cipherdm.sample` and `cipherdm.text_to_image`.
        clip: see `cipherdm.sample`; not for prompts.
        guidance_scale: see `cipherdm.text_to_image`; for prompts only.
        conditioning_scale: the same; for a pipeline with a ControlNet.
        granularity: see `cipherdm.sample`; "block" for prompts and "step" otherwise by default.
        together: most requests, of any clients, that the parties may compute in one run, where their `[limits] batch_wait`
            says so; programs for so many are compiled besides those for one.
        progress: called before each program is compiled.

    Raises:
        CipherDMError: an argument that `cipherdm.sample` or `cipherdm.text_to_image` refuses, or a protocol set without a name.
    """
    protocols = named(protocols)
    if batch < 1:
        raise CipherDMError(f"a run draws at least one image, not {batch}.")
    check_whole("the number of requests in a run", together, 1)
    if named(protocols.name) != protocols:
        raise CipherDMError(
            f"{protocols.name} is not the protocol set of this name; clients know sets by their names only."
        )
    if isinstance(model, Transformer):
        raise CipherDMError(f"{name} is a transformer, which draws nothing; take classifying_model.")
    unet = model.unet if isinstance(model, Pipeline) else model
    usual = sampling_defaults(unet.folder)
    settings: dict[str, Any] = {
        "steps": usual["steps"] if steps is None else steps,
        "start": start,
        "reuse": reuse,
        "scheduler": scheduler or scheduler_of(unet.scheduler_config),
        "eta": eta,
    }
    if isinstance(model, Pipeline):
        if clip:
            raise CipherDMError("clip is for models with labels; leave it out for a pipeline.")
        settings["guidance_scale"] = usual["guidance_scale"] if guidance_scale is None else guidance_scale
        settings["conditioning_scale"] = conditioning_scale
        task = _blank_task(model, batch, protocols, settings)
        unit, about = "block", {"kind": _PROMPTS, "branches": task.shape.branches}
        if isinstance(unet.config, ControlledConfig):
            about["control"] = unet.config.control.to_diffusers()
    else:
        if guidance_scale is not None:
            raise CipherDMError("guidance_scale is for models with prompts; leave it out for a U-Net.")
        settings["clip"] = clip
        task = _blank_task(model, batch, protocols, settings)
        unit, about = "step", {"kind": _LABELS}
    unit, of_all = granularity or unit, None
    if together > 1:
        of_all = _together(_blank_task(model, batch * together, protocols, settings), unit, together, progress)
    about |= {
        **settings,
        "config": unet.config.to_diffusers(),
        "scheduler_config": dict(unet.scheduler_config),
        "protocols": protocols.name,
        "pictures": batch,
    }
    return Model(
        name,
        _plan(task, unit, progress),
        task.owner,
        {name: task.specs[name] for name in task.client},
        ("sample",),
        task.public,
        engine_for(protocols),
        about,
        of_all,
    )


def _blank_task(model: UNet | Pipeline, batch: int, protocols: Protocols, settings: Mapping[str, Any]) -> Task:
    """Return what is asked for so many images; labels, prompts, hints and noise here give shapes, and are not sent."""
    if isinstance(model, Pipeline):
        control = blank_hints(model, batch)
        return text_to_image_task(model, [""] * batch, control=control, protocols=protocols, **settings)
    classes = getattr(model.config, "num_class_embeds", None)
    who = {"count": batch} if classes is None else {"labels": [0] * batch}
    return make_task(model, protocols=protocols, **who, **settings)


def _plan(task: Task, unit: Granularity, progress: Progress | None) -> Plan:
    nodes = sampling_nodes(task.shape, unit)
    return compile_plan(
        nodes, task.specs, keep=["sample"], walking=walking_of(task, nodes, progress), progress=progress
    )


def _together(task: Task, unit: Granularity, requests: int, progress: Progress | None) -> Together:
    inputs = {name: task.specs[name] for name in task.client}
    return Together(requests, _plan(task, unit, progress), inputs, parts_of(task.shape, inputs))


def parts_of(shape: StepShape, names: Iterable[str]) -> dict[str, int]:
    """Return for each input the number of parts that have all images of a run: steps, or branches of the guidance, or one."""
    several = {"noise": shape.steps, "encoder_hidden_states": shape.branches, MEMORY[1]: shape.branches}
    return {name: several.get(name, 1) for name in names}


def images_of(
    cluster: RemoteCluster,
    name: str,
    *,
    labels: Sequence[int] | None = None,
    count: int | None = None,
    prompts: Sequence[str] | None = None,
    negative_prompts: Sequence[str] | None = None,
    control: np.ndarray | None = None,
    components: ClientComponents | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
) -> SamplingResult:
    """Ask for images of a registered model. Only this process sees labels, prompts, hints, noise, latents and images.

    Args:
        cluster: the three hosts, called as a client.
        name: name of the model.
        labels: one class per image, for models with classes.
        count: number of images, for models without classes; as many as one run draws by default.
        prompts: one per image, for models with prompts; as many as one run draws, or a multiple.
        negative_prompts: one per image; empty by default. A model without guidance takes none.
        control: hints for a ControlNet, as in `cipherdm.text_to_image`; one per image.
        components: the client's components of the pipeline to which the model belongs, for prompts.
        seed: seed of the noise; unpredictable by default, as it should be in production.
        progress: see `RemoteCluster.request`.

    Raises:
        CipherDMError: the model is not there or takes other inputs, labels, prompts or components do not fit it, or the
            request fails.
    """
    labels = whole_labels(labels)
    if isinstance(prompts, str):
        prompts = [prompts]
    if isinstance(negative_prompts, str):
        negative_prompts = [negative_prompts] * len(prompts or ())
    if prompts is None and (negative_prompts is not None or components is not None):
        raise CipherDMError("negative prompts and components go with prompts: give prompts as well.")
    if prompts is not None and (labels or count is not None):
        raise CipherDMError("give prompts, or labels or a count, not both.")
    if prompts is not None and components is None:
        raise CipherDMError("prompts need components: load the client's tokenizer, text encoder and VAE.")
    shape, schedule = _described(cluster, name, _LABELS if prompts is None else _PROMPTS)
    if prompts is not None:
        wanted = len(prompts)
    elif shape.config.num_class_embeds is None:
        if labels:
            raise CipherDMError(f"{name} has no classes: leave the labels out.")
        wanted = shape.batch if count is None else count
    else:
        if not labels or count not in (None, len(labels)):
            raise CipherDMError(f"{name} needs labels, one per image, and no other count.")
        wanted = len(labels)
    if wanted < 1 or wanted % shape.batch:
        what = "images" if prompts is None else "prompts"
        raise CipherDMError(f"{name} draws {shape.batch} images per run; give a multiple of that, not {wanted} {what}.")
    embeddings = None if prompts is None else _embedded(name, shape, components, prompts, negative_prompts)
    hints = checked_hints(shape.config, control, wanted)
    seed = secrets.randbits(64) if seed is None else seed
    samples, cost = [], None
    for first in range(0, wanted, shape.batch):
        of_run = slice(first, first + shape.batch)
        inputs = client_values(
            labels[of_run] if labels else None,
            shape,
            seed + first,
            prompts=None if embeddings is None else embeddings[:, of_run].reshape(-1, *embeddings.shape[2:]),
            hints=None if hints is None else hints[of_run],
        )
        answer = cluster.request(name, inputs, progress)
        samples.append(answer.outputs["sample"])
        cost = answer.cost if cost is None else cost + answer.cost
    sampled = shape.decoded(np.concatenate(samples))
    check_sample(sampled, shape)
    if components is None:
        return SamplingResult(sampled, cost)
    return SamplingResult(decode_latents(components, sampled), cost, latents=sampled)


def _described(cluster: RemoteCluster, name: str, kind: str) -> tuple[StepShape, Schedule]:
    """Return the public shape of a registered model's step, and its schedule.

    All three parties say the same of a model, but its owner may have written anything.
    """
    model = cluster.model(name)
    try:
        about: Mapping[str, Any] = json.loads(model.about)
        if about.get("kind") != kind:
            takes = ", ".join(item.name for item in model.inputs)
            raise CipherDMError(
                f"{name} is no model for this request: it takes {takes}.{_HINTS.get(about.get('kind'), '')}"
            )
        options = {"eta": about["eta"], "clip": about.get("clip", False), "start": about.get("start", 0)}
        schedule = make_schedule(about["scheduler_config"], about["scheduler"], about["steps"], **options)
        config = CONFIGS[about["config"]["_class_name"]].from_diffusers(about["config"])
        if "control" in about:
            config = with_control(config, ControlNetConfig.from_diffusers(about["control"]))
        shape = StepShape.of(
            config,
            named(about["protocols"]),
            WeightsLayout((), (), ()),  # a client does not need it
            schedule,
            batch=about["pictures"],
            ring=True,
            branches=about.get("branches", 1),
        )
        declared = [tuple(item.shape) for item in model.inputs if item.name == "sample"]
        if declared != [shape.image_shape]:
            raise ValueError(f"it declares a sample of {declared}, and draws {shape.image_shape}")
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise CipherDMError(
            f"{model.owner} has registered {name} with a description that cannot be read ({shown(str(error))}); "
            "ask for another model, or have it registered again."
        ) from None
    return shape, schedule


def _embedded(
    name: str,
    shape: StepShape,
    components: ClientComponents,
    prompts: Sequence[str],
    negative_prompts: Sequence[str] | None,
) -> np.ndarray:
    """Return the embeddings [branches, prompts, tokens, width] that a model attends to."""
    guided = shape.branches == BRANCHES
    if negative_prompts is not None and not guided:
        raise CipherDMError(f"{name} draws without guidance; leave negative prompts out.")
    width = components.text_encoder.config.hidden_size
    if width != shape.config.cross_attention_dim:
        raise CipherDMError(
            f"the text encoder's width is {width}, and {name} attends to {shape.config.cross_attention_dim}: "
            "take the components of the pipeline that it belongs to."
        )
    embeddings = embed_prompts(components, prompts, negative_prompts, guided=guided)
    return embeddings.reshape(shape.branches, len(prompts), *embeddings.shape[1:])
