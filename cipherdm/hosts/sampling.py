"""Sampling with the roles in their own places: an owner's U-Net as a registered model, and a client that asks for images."""

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..engine import Spec, compile_plan
from ..engine.session import Progress
from ..errors import CipherDMError
from ..models import UNet, UNetConfig, WeightsLayout
from ..protocols import FAST, Protocols, named
from ..protocols.fixed import decode
from ..sampling import engine_for, make_schedule, make_task, sampling_nodes
from ..sampling.sample import Granularity, SamplingResult
from ..sampling.steps import StepShape
from ..sampling.values import client_values
from . import host_pb2 as pb
from .model import Model
from .remote import RemoteCluster

_KIND = "unet2d sampling, version 1"


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
    if pictures < 1:
        raise CipherDMError(f"a run draws at least one picture, not {pictures}.")
    if named(protocols.name) != protocols:
        raise CipherDMError(
            f"{protocols.name} is not the set of protocols of this name; clients know sets by their names only."
        )
    # The owner has no labels and no noise: what stands for them here gives shapes, and is not sent.
    classes = getattr(unet.config, "num_class_embeds", None)
    who = {"count": pictures} if classes is None else {"labels": [0] * pictures}
    settings = {"steps": steps, "scheduler": scheduler, "eta": eta, "clip": clip}
    task = make_task(unet, protocols=protocols, **who, **settings)
    plan = compile_plan(sampling_nodes(task.shape, granularity), task.specs, keep=["sample"])
    about = {
        "kind": _KIND,
        "config": unet.config.to_diffusers(),
        "scheduler_config": dict(unet.scheduler_config),
        "protocols": protocols.name,
        "pictures": pictures,
        **settings,
    }
    inputs = {input_name: Spec.of(np.asarray(array)) for input_name, array in task.client.items()}
    return Model(name, plan, task.owner, inputs, ("sample",), task.public, engine_for(protocols), about)


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
    models = cluster.models()
    if name not in models:
        raise CipherDMError(f"there is no model {name!r}; there is: {', '.join(sorted(models)) or 'none yet'}.")
    shape, pictures, schedule = _read(models[name])
    conditional = shape.config.num_class_embeds is not None
    if conditional != bool(labels):
        raise CipherDMError(f"{name} {'needs labels' if conditional else 'has no classes: leave the labels out'}.")
    wanted = len(labels) if conditional else pictures if count is None else count
    if wanted < 1 or wanted % pictures or (conditional and count not in (None, wanted)):
        raise CipherDMError(f"{name} draws {pictures} pictures a run; ask for a multiple of that, not {wanted}.")
    seed = secrets.randbits(64) if seed is None else seed
    images, cost = [], None
    for first in range(0, wanted, pictures):
        chosen = list(labels[first : first + pictures]) if conditional else None
        inputs = client_values(chosen, schedule, shape, seed + first)
        answer = cluster.request(name, inputs, progress)
        images.append(_decoded(answer.outputs["sample"], shape))
        cost = answer.cost if cost is None else cost + answer.cost
    return SamplingResult(np.concatenate(images), cost)


def _read(model: pb.Model) -> tuple[StepShape, int, Any]:
    """The public shape of a step, the pictures of a run, and the schedule."""
    about: Mapping[str, Any] = json.loads(model.about)
    if about.get("kind") != _KIND:
        raise CipherDMError(f"{model.name} does not sample images; use `request` with {', '.join(_names(model))}.")
    schedule = make_schedule(
        about["scheduler_config"], about["scheduler"], about["steps"], eta=about["eta"], clip=about["clip"]
    )
    shape = StepShape(
        UNetConfig.from_diffusers(about["config"]),
        named(about["protocols"]),
        WeightsLayout((), (), ()),  # which a client has no need of
        schedule.steps,
        about["pictures"],
        schedule.noisy,
        schedule.clip,
        ring=True,
        multistep=schedule.multistep,
    )
    return shape, about["pictures"], schedule


def _decoded(images: np.ndarray, shape: StepShape) -> np.ndarray:
    bits = shape.protocols.value_bits
    return images if bits is None else decode(images, bits, shape.ring)


def _names(model: pb.Model) -> list[str]:
    return [item.name for item in model.inputs]
