"""A denoising step under several protocol sets that take turns on the same parties: time, bytes, messages, memory.

`step_gains` compares the sets, with the figure and the targets.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from cipherdm import protocols as protocol_sets
from cipherdm.cli.options import ModelArgument, parse_numbers
from cipherdm.engine import CostReport, EngineConfig, LocalCluster, Node, Plan, compile_plan
from cipherdm.errors import CipherDMError
from cipherdm.models import UNet, UNetConditionConfig, find_model, load_unet
from cipherdm.progress import Progress, ProgressBar
from cipherdm.protocols import DIRECT, FAST, Protocols
from cipherdm.sampling import Granularity, Task, engine_for, make_task, sampling_nodes
from cipherdm.sampling.steps import Loop, setup_graph, step_graph

from .commands import (
    AtOnceOption,
    BatchOption,
    RecordOption,
    RepetitionsOption,
    StepsOption,
    finish,
    record_path,
    split_names,
)

BASELINES = ("direct", "direct-pade")

DEFAULT_NAMES = (
    *BASELINES,
    "cipherdm",
    "cipherdm-corrected",
    "puma",
    "fast",
    "fast-kernels",
    "fast-guarded",
)

AT_ONCE = 5

_RATIOS = {"time_ratio": "seconds", "bytes_ratio": "bytes", "sends_ratio": "sends"}


@dataclass(frozen=True)
class Variant:
    """One way to compute a step.

    Attributes:
        name: its name in the table.
        protocols: the functions of the model.
        engine: how the parties compute.
        granularity: what becomes one program: several steps in a "loop", the whole "step" or each "block".
        unet: what is measured instead of the benchmark's model: one that was distilled from it.
    """

    name: str
    protocols: Protocols
    engine: EngineConfig
    granularity: Granularity = "loop"
    unet: UNet | None = None


def variants(names: Sequence[str] = DEFAULT_NAMES, granularity: Granularity | None = None) -> tuple[Variant, ...]:
    """The variants with these names: sets of protocols, and "direct-pade".

    "direct-pade" is `DIRECT` with the engine's more exact exponential, which is the setting of the CipherDM release.

    Args:
        names: of the variants.
        granularity: of all of them; by default a "loop", and a "step" for sets with kernels, which a loop cannot have.

    Raises:
        CipherDMError: a name is neither "direct-pade" nor that of a set.
    """
    made = tuple(_variant(name) for name in names)
    return made if granularity is None else tuple(replace(variant, granularity=granularity) for variant in made)


def of_distilled(unet: UNet, protocols: Protocols = FAST) -> Variant:
    """A model that was distilled from the benchmark's, as a variant that is named by its folder."""
    name = f"{protocols.name} on {unet.folder.resolve().name}"
    return Variant(name, protocols, engine_for(protocols), unet=unet)


def _variant(name: str) -> Variant:
    if name == "direct-pade":
        return Variant(name, DIRECT, EngineConfig(exp="pade"))
    chosen = protocol_sets.named(name)
    return Variant(chosen.name, chosen, engine_for(chosen), granularity="step" if chosen.kernels else "loop")


@dataclass(frozen=True, eq=False)
class PreparedStep:
    """The first step of a sampling run, or the first steps, compiled, with the values that they read.

    Attributes:
        variant: how it is computed.
        task: what the owner and the client share, and what is public.
        setup: what runs once before the first step, or None.
        plan: the steps. It leaves its inputs as they are, so that it can be run again.
        count: how many steps the plan takes.
        prefix: of its variables on the parties, so that steps can share a session.
    """

    variant: Variant
    task: Task
    setup: Plan | None
    plan: Plan
    count: int
    prefix: str

    def start(self, cluster: LocalCluster) -> CostReport | None:
        """Share the values and run what comes before the first step; returns what that cost, if there is any."""
        session = cluster.session(self.variant.engine)
        session.share(_prefixed(self.task.owner | self.task.client, self.prefix))
        session.share(_prefixed(self.task.public, self.prefix), public=True)
        return None if self.setup is None else session.run(self.setup)

    def run(self, cluster: LocalCluster) -> CostReport:
        """Run the steps on the values that `start` shared; what all of them cost."""
        return cluster.session(self.variant.engine).run(self.plan)

    def result(self, cluster: LocalCluster) -> np.ndarray:
        """The sample after the steps, revealed: float32 [B, C, H, W]."""
        return self.task.decoded(cluster.session(self.variant.engine).reveal(f"{self.prefix}next_sample"))


def prepare(
    unet: UNet, variant: Variant, *, batch: int, steps: int = 20, at_once: int = AT_ONCE, prefix: str = ""
) -> PreparedStep:
    """Compile the first of `steps` DDIM steps for a batch, or the first `at_once` of them as a loop, if the variant says so.

    Labels go through the model's classes, 0, 1, ..., again and again. For a model that takes prompts they are empty, and
    guided, so that the U-Net computes two branches for each picture.

    Raises:
        CipherDMError: as `make_task`, for a number of steps out of range or a model without a scheduler; as `load_pipeline`,
            for a model that takes prompts.
    """
    task = batch_task(unet, variant.protocols, batch, steps)
    count = min(at_once, steps) if variant.granularity == "loop" else 1
    before, nodes = _first_steps(task, variant.granularity, count)
    before, nodes = ([_renamed(node, prefix) for node in part] for part in (before, nodes))
    specs = _prefixed(task.specs, prefix)
    setup = None
    if before:
        kept = [name for node in before for name in node.outputs]
        setup = compile_plan(before, specs, keep=kept)
        specs |= setup.outputs
    return PreparedStep(variant, task, setup, compile_plan(nodes, specs, keep=[f"{prefix}next_sample"]), count, prefix)


def default_names(unet: UNet) -> tuple[str, ...]:
    """The names of the variants that a model is measured with by default."""
    return tuple(name for name in DEFAULT_NAMES if name != "fast-guarded" or not takes_prompts(unet))


def run(
    unet: UNet,
    *,
    variants: Sequence[Variant],
    batches: Sequence[int] = (1, 4, 16),
    repetitions: int = 5,
    steps: int = 20,
    at_once: int = AT_ONCE,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Measure a denoising step under every variant, for every batch size, and return a row for each.

    SPU reads a program's text at every run, whatever the program does, so the first steps run in one program, as in sampling
    with granularity "loop", and a step is charged with its part of the whole. A set with kernels runs one step.

    Within a batch size all variants run on the same parties and take turns, so that a busy moment of the machine does not
    fall on one of them alone. The first turn of each warms up and is not counted. Memory is measured afterwards, on new
    parties for each variant, because the peak of a process never falls.

    Columns of the result:
        model, batch, variant, repetitions: what was measured; the model by the name of its folder, if it has one.
        at_once: steps that one program took. What follows is for one of them.
        seconds, seconds_low, seconds_high: median, lowest and highest wall time of a step, as the client sees it, without
            compiling, sharing and revealing.
        bytes, sends: what all parties together sent in a step; medians.
        rounds, path_bytes: messages of a step that had to wait for one another, and bytes that leave one after the other: what
            `cipherdm.costs.latency` wants for a network; medians.
        setup_seconds, setup_bytes, setup_sends: of what runs once before the first step, measured once; 0 if there is nothing.
        peak_memory: bytes that a party's process held at most, the largest of the three: Python, SPU, the shares, and one
            run of the steps after the setup.

    Args:
        unet: the model, with its scheduler's configuration.
        variants: what to compare.
        batches: images at a time.
        repetitions: counted runs of each variant.
        steps: length of the DDIM schedule whose first steps are run. It sets the sizes of the owner's tables.
        at_once: steps in one program.
        progress: told of each piece of work.

    Raises:
        CipherDMError: there is nothing to run, a setting is out of range, or the parties fail.
    """
    if not variants or min(repetitions, at_once) < 1 or not batches or min(batches) < 1:
        raise CipherDMError(
            f"there must be at least one variant, repetition, step and picture: got {len(variants)} variants, "
            f"{repetitions} repetitions, {at_once} steps at once, batches {list(batches)}."
        )
    model = "" if unet.folder is None else unet.folder.resolve().name
    report = _Counter(progress, len(batches) * len(variants) * (repetitions + 3))
    rows = []
    for batch in batches:
        prepared = []
        for index, variant in enumerate(variants):
            report(f"batch {batch} {variant.name}: compile")
            settings = {"batch": batch, "steps": steps, "at_once": at_once, "prefix": f"{index}/"}
            prepared.append(prepare(variant.unet or unet, variant, **settings))
        setups, costs = _measure_costs(prepared, repetitions, report)
        memory = [_measure_memory(step, report) for step in prepared]
        rows += [
            {"model": model, "batch": batch, **_row(*measured)}
            for measured in zip(prepared, setups, costs, memory, strict=True)
        ]
    return pd.DataFrame(rows)


def measure(
    model: ModelArgument,
    protocols: Annotated[
        str | None,
        typer.Option(
            help="Names of protocol sets, and direct-pade, separated by commas; the published ones and ours by default."
        ),
    ] = None,
    distilled: Annotated[
        str | None,
        typer.Option(help="Model distilled from this one, to measure beside it with fast; MODEL-quad if there is one."),
    ] = None,
    batch: BatchOption = "1,4,16",
    repetitions: RepetitionsOption = 5,
    steps: StepsOption = 20,
    at_once: AtOnceOption = AT_ONCE,
    granularity: Annotated[
        str | None,
        typer.Option(
            help="Extent of one program: block, step or loop; by default a loop, or a step for sets with kernels."
        ),
    ] = None,
    record: RecordOption = None,
) -> None:
    """Measure a denoising step under several protocol sets, taking turns: time, bytes, messages, memory.

    Ratios are against direct or direct-pade, whichever is faster; more is better.
    """

    def chosen(unet: UNet) -> tuple[Variant, ...]:
        names = default_names(unet) if protocols is None else split_names(protocols)
        return (*variants(names, granularity), *_distilled(model, distilled))

    settings = {"batch": batch, "repetitions": repetitions, "steps": steps, "at_once": at_once}
    measure_variants("step", model, chosen, record, **settings)


def measure_variants(
    benchmark: str,
    model: str,
    variants_of: Callable[[UNet], Sequence[Variant]],
    record: Path | None,
    *,
    batch: str,
    steps: int,
    **settings,
) -> None:
    """Measure a step with a model's variants, as a command: write the record, and print its table.

    Args:
        benchmark: Beginning of the record's file name, before the model's.
        model: Name of the model in data/models, or its folder.
        variants_of: Function that makes the variants for the loaded model.
        record: Path of the record; None for the usual one.
        batch: Numbers of images, with commas between.
        steps: Length of the schedule.
        settings: Further arguments of `run`.
    """
    batches, folder = parse_numbers(batch, "--batch"), find_model(model)
    unet = load_unet(folder)
    with ProgressBar("run") as bar:
        frame = run(unet, variants=variants_of(unet), batches=batches, steps=steps, progress=bar, **settings)
    finish(record_path(record, f"{benchmark}_{folder.resolve().name}"), as_record(frame, steps=steps), ratios(frame))


def _distilled(model: str, name: str | None) -> list[Variant]:
    """Return the variant of the distilled model: that of the given name, or `model`-quad if there is one."""
    if name is None:
        folder = find_model(model)
        beside = folder.with_name(f"{folder.resolve().name}-quad")
        return [of_distilled(load_unet(beside))] if beside.is_dir() else []
    return [of_distilled(load_unet(find_model(name)))]


def ratios(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of `run` with time_ratio, bytes_ratio and sends_ratio: baseline divided by variant, more is better.

    The baseline of a model and batch is "direct" or "direct-pade", whichever took less time. Without either of them the
    ratios are NaN.
    """
    groups = [_with_ratios(group) for _, group in frame.groupby(["model", "batch"], sort=False)]
    return pd.concat(groups).sort_index()


def as_record(frame: pd.DataFrame, *, steps: int) -> dict[str, Any]:
    """The JSON-ready contents of a record: the rows of `run`, and the length of its schedule."""
    return {"benchmark": "step", "scheduler": "ddim", "steps": steps, "rows": frame.to_dict("records")}


class _Counter:
    """Numbers the pieces of work for a progress function."""

    def __init__(self, progress: Progress | None, total: int):
        self._progress, self._done, self._total = progress, 0, total

    def __call__(self, name: str) -> None:
        if self._progress is not None:
            self._progress(self._done, self._total, name)
        self._done += 1


def _first_steps(task: Task, granularity: str, count: int) -> tuple[list[Node], list[Node]]:
    """The nodes before the first step, and those of the first `count` steps."""
    if granularity == "loop":
        first = Loop(step_graph(task.shape), count)
        return sampling_nodes(task.shape, "loop")[:-1], [Node("loop", first, first.inputs, ("sample",))]
    nodes = sampling_nodes(task.shape, granularity)
    setup = setup_graph(task.shape)
    before = 0 if setup is None else len(setup.nodes)
    return nodes[:before], nodes[before : before + count * (len(nodes) - before) // task.shape.steps]


def _renamed(node: Node, prefix: str) -> Node:
    """The node on prefixed variables. The next sample gets its own name, so that the step can be run again."""
    outputs = ("next_sample" if name == "sample" else name for name in node.outputs)
    inputs = tuple(prefix + name for name in node.inputs)
    return replace(node, inputs=inputs, outputs=tuple(prefix + name for name in outputs))


def _prefixed(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + name: value for name, value in values.items()}


def _measure_costs(
    prepared: Sequence[PreparedStep], repetitions: int, report: _Counter
) -> tuple[list[CostReport | None], list[list[CostReport]]]:
    """What each setup and each counted run of each step cost."""
    costs: list[list[CostReport]] = [[] for _ in prepared]
    with LocalCluster() as cluster:
        setups = [step.start(cluster) for step in prepared]
        for turn in range(repetitions + 1):
            for step, counted in zip(prepared, costs, strict=True):
                report(f"{_name(step)}: {f'run {turn} of {repetitions}' if turn else 'warm-up'}")
                cost = step.run(cluster)
                if turn:
                    counted.append(cost)
    return setups, costs


def _measure_memory(step: PreparedStep, report: _Counter) -> int:
    """Bytes that a party holds at most, on parties that do nothing else."""
    report(f"{_name(step)}: memory")
    with LocalCluster() as cluster:
        step.start(cluster)
        step.run(cluster)
        return max(cluster.session(step.variant.engine).peak_memory())


def _name(step: PreparedStep) -> str:
    return f"batch {step.task.shape.batch} {step.variant.name}"


def _row(step: PreparedStep, setup: CostReport | None, costs: list[CostReport], memory: int) -> dict[str, Any]:
    times = [cost.seconds / step.count for cost in costs]
    return {
        "variant": step.variant.name,
        "at_once": step.count,
        "seconds": statistics.median(times),
        "seconds_low": min(times),
        "seconds_high": max(times),
        "bytes": round(statistics.median(cost.bytes for cost in costs) / step.count),
        "sends": round(statistics.median(cost.sends for cost in costs) / step.count),
        "rounds": round(statistics.median(cost.rounds for cost in costs) / step.count),
        "path_bytes": round(statistics.median(cost.path_bytes for cost in costs) / step.count),
        "peak_memory": memory,
        "repetitions": len(costs),
        "setup_seconds": setup.seconds if setup else 0.0,
        "setup_bytes": setup.bytes if setup else 0,
        "setup_sends": setup.sends if setup else 0,
    }


def _with_ratios(group: pd.DataFrame) -> pd.DataFrame:
    """One model and batch."""
    candidates = group[group["variant"].isin(BASELINES)]
    if candidates.empty:
        return group.assign(**dict.fromkeys(_RATIOS, float("nan")))
    baseline = candidates.loc[candidates["seconds"].idxmin()]
    return group.assign(**{ratio: baseline[column] / group[column] for ratio, column in _RATIOS.items()})


def batch_task(unet: UNet, protocols: Protocols, batch: int, steps: int) -> Task:
    """A DDIM run of `steps` steps for a batch of pictures, with labels 0, 1, ... again and again, or guided empty prompts.

    Raises:
        CipherDMError: as `make_task`; as `load_pipeline`, for a model that takes prompts.
    """
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
    """Whether a model attends to prompts."""
    return isinstance(unet.config, UNetConditionConfig)
