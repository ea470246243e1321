"""Ways to compute a denoising step: protocol sets, models distilled for them, and the first steps compiled for the parties."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cipherdm.engine import CostReport, EngineConfig, LocalCluster, Node, Plan, compile_plan
from cipherdm.models import UNet, UNetConditionConfig, load_unet
from cipherdm.protocols import DIRECT, FAST, Protocols, named
from cipherdm.sampling import Granularity, Task, engine_for, make_task, sampling_nodes
from cipherdm.sampling.rings import walking_of
from cipherdm.sampling.steps import Loop, setup_graph, step_graph

BASELINES = ("direct", "direct-pade")
DEFAULT_NAMES = (*BASELINES, "cipherdm", "cipherdm-corrected", "puma", "fast", "fast-64", "fast-rings", "fast-guarded")
AT_ONCE = 5
"""Steps in one program, by default."""


@dataclass(frozen=True)
class Variant:
    """One way to compute a step, of the benchmark's model or of a `unet` that was distilled from it."""

    name: str
    protocols: Protocols
    engine: EngineConfig
    granularity: Granularity = "loop"  # of one program
    unet: UNet | None = None


def variants(names: Sequence[str] = DEFAULT_NAMES, granularity: Granularity | None = None) -> tuple[Variant, ...]:
    """Return the variants with these names: protocol sets, "direct-pade", and sets "on" a model ("ditto on mnist-dit-quad").

    "direct-pade" is `DIRECT` with the engine's more exact exponential, as the CipherDM release sets it. The granularity is by
    default "loop", but "step" for sets that parties walk, which a loop cannot be, and "block" for one of two rings. Raises
    CipherDMError for another name.
    """

    def variant(name: str) -> Variant:
        if name == "direct-pade":
            return Variant(name, DIRECT, EngineConfig(exp="pade"), granularity or "loop")
        of_set, _, model = name.partition(" on ")
        chosen = named(of_set)
        usual = "block" if chosen.small_bits else "step" if chosen.walk_bits else "loop"
        return Variant(name, chosen, engine_for(chosen), granularity or usual, load_unet(model) if model else None)

    return tuple(map(variant, names))


def of_distilled(unet: UNet, protocols: Protocols = FAST) -> Variant:
    """Return a model that was distilled from the benchmark's, as a variant that is named by its folder."""
    return Variant(f"{protocols.name} on {unet.folder.resolve().name}", protocols, engine_for(protocols), unet=unet)


@dataclass(frozen=True, eq=False)
class PreparedStep:
    """The first step of a sampling run, or the first `count` steps, compiled, with the values that they read."""

    variant: Variant
    task: Task
    setup: Plan | None  # runs once before the first step
    plan: Plan  # of the steps; it leaves its inputs as they are, so that it can be run again
    count: int
    prefix: str  # of its variables on the parties, so that steps can share a session

    def start(self, cluster: LocalCluster) -> CostReport | None:
        """Share the values and run what comes before the first step; return what that cost, if there is any."""
        session = cluster.session(self.variant.engine)
        session.share(_prefixed(self.task.owner | self.task.client, self.prefix))
        session.share(_prefixed(self.task.public, self.prefix), public=True)
        return None if self.setup is None else session.run(self.setup)

    def run(self, cluster: LocalCluster) -> CostReport:
        """Run the steps on the values that `start` shared; return what all of them cost."""
        return cluster.session(self.variant.engine).run(self.plan)

    def result(self, cluster: LocalCluster) -> np.ndarray:
        """Reveal the sample after the steps: float32 [B, C, H, W]."""
        return self.task.decoded(cluster.session(self.variant.engine).reveal(f"{self.prefix}next_sample"))


def prepare(
    unet: UNet, variant: Variant, *, batch: int, steps: int = 20, at_once: int = AT_ONCE, prefix: str = ""
) -> PreparedStep:
    """Compile the first of `steps` DDIM steps for a batch, or the first `at_once` of them if the variant is a loop."""
    task = batch_task(unet, variant.protocols, batch, steps)
    count = min(at_once, steps) if variant.granularity == "loop" else 1
    before, nodes = _first_steps(task, variant.granularity, count)
    before, nodes = ([_renamed(node, prefix) for node in part] for part in (before, nodes))
    # Of all steps, so that the plan is that of a whole run.
    walking = walking_of(task, sampling_nodes(task.shape, variant.granularity))
    specs = _prefixed(task.specs, prefix)
    setup = None
    if before:
        outputs = [name for node in before for name in node.outputs]
        setup = compile_plan(before, specs, keep=outputs, walking=walking)
        specs |= setup.outputs
    plan = compile_plan(nodes, specs, keep=[f"{prefix}next_sample"], walking=walking)
    return PreparedStep(variant, task, setup, plan, count, prefix)


def batch_task(unet: UNet, protocols: Protocols, batch: int, steps: int) -> Task:
    """Return a DDIM run for a batch of images, with labels 0, 1, ... again and again, or of empty prompts with guidance."""
    if takes_prompts(unet):
        # transformers take seconds to import.
        from cipherdm.sampling.pipeline import load_pipeline
        from cipherdm.sampling.text_to_image import text_to_image_task

        return text_to_image_task(load_pipeline(unet.folder), [""] * batch, steps=steps, protocols=protocols)
    return make_task(unet, steps=steps, protocols=protocols, **labels_or_count(unet, batch))


def labels_or_count(unet: UNet, batch: int) -> dict[str, Any]:
    """Return the arguments of `sample` for a batch: labels 0, 1, ... again and again, or the count for a model without."""
    classes = unet.config.num_class_embeds
    return {"count": batch} if classes is None else {"labels": [index % classes for index in range(batch)]}


def takes_prompts(unet: UNet) -> bool:
    """Return True if a model attends to prompts."""
    return isinstance(unet.config, UNetConditionConfig)


def default_names(unet: UNet) -> tuple[str, ...]:
    """Return the names of the variants that a model is measured with by default."""
    return tuple(name for name in DEFAULT_NAMES if name != "fast-guarded" or not takes_prompts(unet))


def _first_steps(task: Task, granularity: str, count: int) -> tuple[list[Node], list[Node]]:
    """Return the nodes before the first step, and those of the first `count` steps."""
    if granularity == "loop":
        first = Loop(step_graph(task.shape), count)
        return sampling_nodes(task.shape, "loop")[:-1], [Node("loop", first, first.inputs, ("sample",))]
    nodes = sampling_nodes(task.shape, granularity)
    setup = setup_graph(task.shape)
    before = 0 if setup is None else len(setup.nodes)
    return nodes[:before], nodes[before : before + count * (len(nodes) - before) // task.shape.steps]


def _renamed(node: Node, prefix: str) -> Node:
    """Return the node on prefixed variables. The next sample gets its own name, so that the step can be run again."""
    outputs = tuple(prefix + ("next_sample" if name == "sample" else name) for name in node.outputs)
    return replace(node, inputs=tuple(prefix + name for name in node.inputs), outputs=outputs)


def _prefixed(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + name: value for name, value in values.items()}
