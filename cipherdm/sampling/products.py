"""How large the products of a model's linear layers are: measured by its owner, in plaintext, on public noise."""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from ..engine import Graph
from ..errors import CipherDMError
from ..models import UNet
from ..models.rings import LayerProduct
from ..protocols import FAST, Protocols, fast
from ..protocols.fixed import Fixed
from .sample import make_task
from .steps import WEIGHTS, BlockFunction, setup_graph, step_graph


def measure_products(
    unet: UNet,
    *,
    steps: int = 10,
    per_class: int = 4,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, LayerProduct]:
    """Sample with FAST's emulation by DDIM; the largest product of every convolution and linear layer, by diffusers' names.

    It has to be FAST's, since products are of the weights that the owner prepares for it: factors of one layer are folded into
    another. Products are taken without biases, over all pictures, steps and elements.

    Args:
        steps: denoising steps.
        per_class: pictures of each class.
        seed: of the initial noise, which is public.
        progress: called as progress(done, steps, "products") after each step.

    Raises:
        CipherDMError: as `make_task`; the model is not calibrated; there is to be no picture; or a number overflows the ring
            of 64 bits, which FAST computes in.
    """
    if per_class < 1:
        raise CipherDMError(f"there must be at least 1 picture of each class; got {per_class}.")
    classes = unet.config.num_class_embeds
    pictures = {"count": per_class} if classes is None else {"labels": [*range(classes)] * per_class}
    task = make_task(unet, steps=steps, protocols=FAST, seed=seed, ring=False, **pictures)
    values = {name: jnp.asarray(array) for name, array in (task.owner | task.client | task.public).items()}
    setup, step = setup_graph(task.shape), step_graph(task.shape)
    if setup is not None:
        values.update(zip(setup.outputs, setup(*(values[name] for name in setup.inputs)), strict=True))
    layers: dict[str, LayerProduct] = {}  # filled when the step is traced
    call = jax.jit(_recorded(step, layers, task.shape.batch))
    largest: dict[str, float] = {}
    for index in range(steps):
        values["step"] = values[f"step.{index}"]
        outputs, found = call({name: values[name] for name in step.inputs})
        values.update(outputs)
        for name, size in found.items():
            largest[name] = max(largest.get(name, 0.0), float(_finite(name, size)))
        if progress is not None:
            progress(index + 1, steps, "products")
    return {name: replace(layer, largest=largest[name]) for name, layer in layers.items()}


def _finite(name: str, size: jnp.ndarray) -> np.ndarray:
    if not np.isfinite(size):
        raise CipherDMError(
            f"The product of {name} is no number: something before it overflows the ring. `cipherdm check-ranges` tells which "
            "layers leave their ranges; calibrate the model again, with more pictures, or take more steps."
        )
    return np.asarray(size)


def _recorded(step: Graph, layers: dict[str, LayerProduct], batch: int):
    """A function of a step's values to its outputs and the largest size of each layer's product, both by name."""

    def call(values):
        values, found = dict(values), {}
        for node in step.nodes:
            function, inputs = node.function, [values[name] for name in node.inputs]
            if isinstance(function, BlockFunction):
                names = {id(array): name for array, name in zip(inputs, node.inputs, strict=True)}
                note = _note_to(layers, found, names, batch)
                function = replace(function, protocols=_recording(function.protocols, note))
            results = function(*inputs)
            values.update(zip(node.outputs, results if isinstance(results, tuple) else (results,), strict=True))
        return {name: values[name] for name in step.outputs}, found

    return call


def _note_to(layers: dict[str, LayerProduct], found: dict[str, jnp.ndarray], names: dict[int, str], batch: int):
    """A function that notes the product of a weight, a node's very input, and x."""

    def note(weight: Fixed, x: Fixed, product: Fixed) -> None:
        name = names[id(weight.array)].removeprefix(WEIGHTS).removesuffix(".weight")
        found[name] = jnp.max(jnp.abs(product.array))
        inputs, outputs = (array.size // batch for array in (x.array, product.array))
        adds = outputs * weight.array[0].size
        layers[name] = LayerProduct(0.0, fast.room_for(x, weight).bits, inputs, outputs, adds)

    return note


def _recording(protocols: Protocols, note: Callable[[Fixed, Fixed, Fixed], None]) -> Protocols:
    """The same functions, with each linear layer's product noted."""

    def conv2d(params, x, **geometry):
        note(params["weight"], x, fast.conv2d({"weight": params["weight"]}, x, **geometry))
        return fast.conv2d(params, x, **geometry)

    def linear(params, x):
        note(params["weight"], x, fast.linear({"weight": params["weight"]}, x))
        return fast.linear(params, x)

    def projections(layers, x, *, protocols):
        for layer in layers:
            linear(layer, x)
        return fast.projections(layers, x, protocols=FAST)

    return replace(protocols, conv2d=conv2d, linear=linear, projections=projections)
