"""A denoising step's time, bytes and rounds by part of the U-Net, and within a part by kind of layer.

A part is what runs as one program with granularity "block". SPU's own operators do not tell which layer they belong to (an
exponential may be a softmax's or a SiLU's), so each distinct call of a set's functions is also compiled and run by itself, on
the same shapes. A call's own cost is its cost less that of the calls within it. What a part's calls do not explain is its
"rest": sums, concatenations, truncations at a block's end, and conversions.

All quantities add up to those of the step, block by block; one program for the whole step would spare a few things that blocks
repeat. Calls that take more by themselves than their part does, such as for a constant that they share, are scaled down to
it. Seconds are those that SPU spends in operators, without reading the program's text, which takes milliseconds at every run.
"""

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Annotated, Any

import jax
import numpy as np
import pandas as pd
import typer

from cipherdm.cli.options import ModelArgument
from cipherdm.engine import CostReport, Graph, LocalCluster, Node, Plan, Spec, compile_plan
from cipherdm.errors import CipherDMError
from cipherdm.models import UNet, find_model, load_unet, unet_blocks
from cipherdm.progress import Progress, ProgressBar
from cipherdm.records import load_average
from cipherdm.sampling import Task
from cipherdm.sampling.steps import setup_graph, step_graph

from .breakdown_calls import ProtocolCall, calls_of
from .commands import RecordOption, RepetitionsOption, StepsOption, finish, record_path, silent, split_names, take_turns
from .variants import PreparedStep, Variant, prepare
from .variants import variants as variants_named

QUANTITIES = ("seconds", "bytes", "sends", "rounds", "path_bytes")
"""Measured quantities of each program. `path_bytes` leave one after the other, see `cipherdm.costs.latency`."""

REST = "rest"

_FUNCTIONS = {
    "convolution": ("conv2d",),
    "linear": ("linear", "projections"),
    "attention products": ("attention", "linear_attention"),
    "softmax": ("softmax",),
    "activation": ("silu", "mish", "gelu", "quad", "norm_activation"),
    "normalisation": ("group_norm", "layer_norm"),
}

KINDS = {function: kind for kind, functions in _FUNCTIONS.items() for function in functions}
"""Kind of layer that each function of a set counts as; a set's attention may have its softmax within the products."""

_PARTS = {
    "time embedding": ("time_embedding", "time_projection", "timestep"),
    "first and last convolution": ("conv_in", "conv_out"),
    "residual blocks": ("resnet",),
    "attention": ("attention",),
    "down- and upsampling": ("downsample", "upsample"),
    "owner's tables": ("step_table", "class_rows"),
    "scheduler update": ("scheduler",),
}  # kinds of blocks, and names of other parts, in each group

_GROUPS = {part: group for group, parts in _PARTS.items() for part in parts}
_OTHERS = "other parts"
GROUPS = (*_PARTS, _OTHERS)
"""Groups of parts, in the order of the U-Net."""

Costs = dict[str, float]


@dataclass(frozen=True, eq=False)
class _Compiled:
    """A variant's step, block by block, and its distinct calls, each as a program by itself."""

    step: PreparedStep
    calls: Mapping[str, tuple[ProtocolCall, ...]]  # of each part
    labels: Mapping[ProtocolCall, str]  # of the calls' programs in `plan`
    plan: Plan  # the step, and each call behind the first part that makes it, so that a busy moment falls on both
    zeros: dict[str, np.ndarray]  # secret variables; the cost of a call does not depend on values
    public: dict[str, np.ndarray]

    def start(self, cluster: LocalCluster) -> None:
        """Share all values, and run what comes before the first step."""
        self.step.start(cluster)
        session = cluster.session(self.step.variant.engine)
        session.share(self.zeros)
        session.share(self.public, public=True)

    def run(self, cluster: LocalCluster) -> dict[str, Costs]:
        """Run the step and the calls; return what each program cost."""
        return program_costs(cluster.session(self.step.variant.engine).run(self.plan))


def run(
    unet: UNet,
    *,
    variants: Sequence[Variant],
    batch: int = 1,
    steps: int = 20,
    repetitions: int = 3,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure the first denoising step by part and kind, variants taking turns, and return the record.

    Of each program the median of bytes, messages and rounds is kept, and the least time: the time without other delays.
    The variants' granularity does not matter; `repetitions` come after a warm-up. Raises CipherDMError if there is nothing to
    run, or if the parties fail.
    """
    if not variants or repetitions < 1:
        raise CipherDMError("there must be at least one variant and one repetition for a breakdown.")
    total = len(variants) * (repetitions + 2)
    load, start, compiled = load_average(), time.monotonic(), []
    for index, variant in enumerate(variants):
        progress(index, total, f"{variant.name}: compile")
        compiled.append(_prepare(unet, variant, batch=batch, steps=steps, prefix=f"{index}/"))
    with LocalCluster() as cluster:
        for one in compiled:
            one.start(cluster)
        runs = [(one.step.variant.name, partial(one.run, cluster)) for one in compiled]
        costs = take_turns(runs, repetitions, progress, before=len(variants), total=total)
    return {
        "benchmark": "breakdown",
        "model": "" if unet.folder is None else unet.folder.resolve().name,
        "batch": batch,
        "steps": steps,
        "repetitions": repetitions,
        "load_before": load,
        "seconds": time.monotonic() - start,
        "rows": [row for one, runs in zip(compiled, costs, strict=True) for row in _rows(one, _typical(runs))],
    }


def measure(
    model: ModelArgument,
    protocols: Annotated[
        str, typer.Option(help="Names of protocol sets, and direct-pade, separated by commas.")
    ] = "direct,cipherdm,fast",
    batch: Annotated[int, typer.Option(help="Images at a time.", min=1)] = 1,
    repetitions: RepetitionsOption = 3,
    steps: StepsOption = 20,
    record: RecordOption = None,
) -> None:
    """Measure a denoising step by part of the U-Net and kind of layer: seconds, bytes, messages, rounds. Takes some minutes."""
    folder = find_model(model)
    chosen = variants_named(split_names(protocols))
    settings = {"batch": batch, "repetitions": repetitions, "steps": steps}
    with ProgressBar("run") as bar:
        found = run(load_unet(folder), variants=chosen, progress=bar, **settings)
    finish(record_path(record, f"breakdown_{folder.resolve().name}"), found, table(found))


def program_costs(report: CostReport) -> dict[str, Costs]:
    """Return the `QUANTITIES` of each program label in a report: seconds in operators, bytes and messages of all parties."""
    seconds = report.operators.groupby("program")["seconds"].sum() / max(report.operators["party"].nunique(), 1)
    found = {}
    for label, row in report.by_program().iterrows():
        programs, kernels = (frame[frame["program"] == label] for frame in (report.programs, report.kernels))
        own = replace(report, programs=programs, kernels=kernels)
        # A program that sends nothing has no kernels, which would be taken for a report without any.
        rounds, path_bytes = (own.rounds, own.path_bytes) if row["sends"] else (0, 0)
        costs = (float(seconds.get(label, 0.0)), int(row["bytes"]), int(row["sends"]), rounds, path_bytes)
        found[label] = dict(zip(QUANTITIES, costs, strict=True))
    return found


def table(record: Mapping[str, Any], quantity: str = "seconds") -> pd.DataFrame:
    """Return a quantity of `QUANTITIES` by group of parts (rows) and variant (columns), with sums."""
    if quantity not in QUANTITIES:
        raise CipherDMError(f"no quantity is called {quantity!r}: choose from {', '.join(QUANTITIES)}.")
    frame = pd.DataFrame(record["rows"])
    sums = frame.pivot_table(quantity, "group", "variant", aggfunc="sum", sort=False, fill_value=0)
    sums = sums.reindex([group for group in GROUPS if group in set(frame["group"])])
    return pd.concat([sums, sums.sum().to_frame("all").T])


def split(whole: Costs, calls: Iterable[tuple[str, Costs]]) -> dict[str, Costs]:
    """Return a part's costs by kind, from its calls' costs by themselves, and the "rest". They add up to `whole`."""
    sums: dict[str, Costs] = {}
    for kind, costs in calls:
        before = sums.get(kind, dict.fromkeys(QUANTITIES, 0))
        sums[kind] = {quantity: before[quantity] + costs[quantity] for quantity in QUANTITIES}
    kinds: dict[str, Costs] = {kind: {} for kind in (*sums, REST)}
    for quantity in QUANTITIES:
        # A call that only passes on has about nothing of its own, which noise may make negative.
        found = {kind: max(costs[quantity], 0) for kind, costs in sums.items()}
        total = sum(found.values())
        factor = whole[quantity] / total if total > whole[quantity] else 1
        for kind, cost in found.items():
            kinds[kind][quantity] = cost * factor
        kinds[REST][quantity] = max(whole[quantity] - total, 0)
    return kinds


def _prepare(unet: UNet, variant: Variant, *, batch: int, steps: int, prefix: str) -> _Compiled:
    step = prepare(unet, replace(variant, granularity="block"), batch=batch, steps=steps, prefix=prefix)
    graph = step_graph(step.task.shape)
    calls = calls_of(graph, _specs(step.task, graph))
    labels = {call: f"call {index}" for index, call in enumerate(dict.fromkeys(_all_calls(chain(*calls.values()))))}
    alone, specs = {}, {}
    for call, label in labels.items():
        names = tuple(f"{prefix}zeros {spec}" for spec in call.inputs)
        specs.update(zip(names, call.inputs, strict=True))
        results = jax.eval_shape(call.function, *(jax.ShapeDtypeStruct(s.shape, s.dtype) for s in call.inputs))
        outputs = tuple(f"{prefix}result {index}" for index in range(len(jax.tree_util.tree_leaves(results))))
        alone[call] = compile_plan([Node(label, call.function, names, outputs)], specs, keep=()).calls
    plan = []
    for part in step.plan.calls:
        plan.append(part)
        for call in _all_calls(calls[part.label]):
            plan += alone.pop(call, ())
    zeros, public = (
        {name: np.zeros(spec.shape, spec.dtype) for name, spec in specs.items() if spec.public is known}
        for known in (False, True)
    )
    return _Compiled(step, calls, labels, Plan(tuple(plan)), zeros, public)


def _specs(task: Task, graph: Graph) -> dict[str, Spec]:
    """Return specs of all that a step reads: shared values, the step's number, and what is computed once before."""
    specs = task.specs | {"step": task.specs["step.0"]}
    before = setup_graph(task.shape)
    if before is not None:
        inputs = [jax.ShapeDtypeStruct(specs[name].shape, specs[name].dtype) for name in before.inputs]
        results = jax.eval_shape(before.__call__, *inputs)
        outputs = zip(before.outputs, results, strict=True)
        specs |= {name: Spec(tuple(result.shape), str(result.dtype)) for name, result in outputs}
    return {name: specs[name] for name in graph.inputs}


def _all_calls(calls: Iterable[ProtocolCall]) -> Iterable[ProtocolCall]:
    """Yield every call, then those within it."""
    for call in calls:
        yield call
        yield from _all_calls(call.inner)


def _typical(runs: Sequence[dict[str, Costs]]) -> dict[str, Costs]:
    """Return the medians of what several runs cost, but the least seconds."""
    take = dict.fromkeys(QUANTITIES, statistics.median) | {"seconds": min}
    return {label: {q: take[q]([run[label][q] for run in runs]) for q in QUANTITIES} for label in runs[0]}


def _rows(compiled: _Compiled, costs: Mapping[str, Costs]) -> list[dict[str, Any]]:
    kinds_of_block = {block.name: block.kind for block in unet_blocks(compiled.step.task.shape.config)}

    def own(call: ProtocolCall) -> tuple[str, Costs]:
        """Return a call's kind, and its cost less that of the calls within it."""
        whole, *inner = (costs[compiled.labels[one]] for one in (call, *call.inner))
        return KINDS[call.name], {q: whole[q] - sum(found[q] for found in inner) for q in QUANTITIES}

    rows = []
    for part, calls in compiled.calls.items():
        group = _GROUPS.get(kinds_of_block.get(part, part), _OTHERS)
        about = {"variant": compiled.step.variant.name, "part": part, "group": group}
        found = split(costs[part], map(own, _all_calls(calls)))
        rows += [about | {"kind": kind} | cost for kind, cost in found.items()]
    return rows
