"""A denoising step's time, bytes and rounds by part of the U-Net, and within a part by kind of layer.

A part is what runs as one program with granularity "block": a residual block, an attention block, the scheduler's update.
Its cost comes from running the step so. SPU's own operators do not tell which layer they belong to (an exponential may be a
softmax's or a SiLU's), so each distinct call of a set's functions is also compiled and run by itself, on the same shapes:
a softmax, a convolution. A call's own cost is its cost less that of the calls within it. Costs that a part's calls do not
explain are its "rest": sums, concatenations, truncations at a block's end, and conversions.

All quantities add up to those of the step, block by block. In one program for the whole step the compiler spares a few things
that blocks repeat; the largest is the activation in each residual block's time projection. Where a part's calls take more by
themselves than within it, they are scaled down to the part's cost: a constant that several calls use is shared once in a part,
and times differ a little. Seconds are those that SPU spends in a program's operators, without reading the program's text, which
takes milliseconds at every run.
"""

import os
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
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
from cipherdm.sampling import Task
from cipherdm.sampling.steps import setup_graph, step_graph

from .breakdown_calls import ProtocolCall, calls_of
from .commands import RecordOption, RepetitionsOption, StepsOption, finish, record_path, silent, split_names, take_turns
from .variants import PreparedStep, Variant, prepare
from .variants import variants as variants_named

QUANTITIES = ("seconds", "bytes", "sends", "rounds", "path_bytes")
"""Measured quantities of each program. `path_bytes` leave one after the other, see `cipherdm.costs.latency`."""

REST = "rest"

KINDS = {
    "conv2d": "convolution",
    "linear": "linear",
    "projections": "linear",
    "attention": "attention products",
    "linear_attention": "attention products",
    "softmax": "softmax",
    "silu": "activation",
    "mish": "activation",
    "gelu": "activation",
    "quad": "activation",
    "norm_activation": "activation",
    "group_norm": "normalisation",
    "layer_norm": "normalisation",
}
"""Kind of layer that each function of a set counts as; a set's attention may have its softmax within the products."""

_GROUPS = {
    "time_embedding": "time embedding",
    "time_projection": "time embedding",
    "conv_in": "first and last convolution",
    "conv_out": "first and last convolution",
    "resnet": "residual blocks",
    "attention": "attention",
    "downsample": "down- and upsampling",
    "upsample": "down- and upsampling",
    "timestep": "time embedding",
    "step_table": "owner's tables",
    "class_rows": "owner's tables",
    "scheduler": "scheduler update",
}

_OTHERS = "other parts"

GROUPS = (*dict.fromkeys(_GROUPS.values()), _OTHERS)
"""Groups of parts, in the order of the U-Net."""

Costs = dict[str, float]


@dataclass(frozen=True, eq=False)
class _Compiled:
    """A variant's step, block by block, and its distinct calls, each as a program by itself.

    Attributes:
        step: Step.
        calls: Calls of each part.
        labels: Labels of the calls' programs in `plan`.
        plan: Programs of the step. Behind the first part that makes a call stands that call by itself, so that a busy moment
            of the machine falls on both.
        zeros: Secret variables that it reads; the cost of a call does not depend on values.
        public: Variables that the parties know.
    """

    step: PreparedStep
    calls: Mapping[str, tuple[ProtocolCall, ...]]
    labels: Mapping[ProtocolCall, str]
    plan: Plan
    zeros: dict[str, np.ndarray]
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

    Args:
        unet: Model with its scheduler's configuration.
        variants: Ways to compute the step; their granularity does not matter.
        batch: Images at a time.
        steps: Length of the DDIM schedule whose first step is run.
        repetitions: Counted runs; one more warms up.
        progress: Function that is told of each piece of work.

    Raises:
        CipherDMError: There is nothing to run, or the parties fail.
    """
    if not variants or repetitions < 1:
        raise CipherDMError("there must be at least one variant and one repetition for a breakdown.")
    total = len(variants) * (repetitions + 2)
    load, start, compiled = os.getloadavg()[0], time.monotonic(), []
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
        own = replace(
            report,
            programs=report.programs[report.programs["program"] == label],
            kernels=report.kernels[report.kernels["program"] == label],
        )
        found[label] = {
            "seconds": float(seconds.get(label, 0.0)),
            "bytes": int(row["bytes"]),
            "sends": int(row["sends"]),
            # A program that sends nothing has no kernels, which would be taken for a report without any.
            "rounds": own.rounds if row["sends"] else 0,
            "path_bytes": own.path_bytes if row["sends"] else 0,
        }
    return found


def table(record: Mapping[str, Any], quantity: str = "seconds") -> pd.DataFrame:
    """Return a quantity by group of parts (rows) and variant (columns), with sums; zero where there is nothing.

    Raises:
        CipherDMError: The quantity is not one of `QUANTITIES`.
    """
    if quantity not in QUANTITIES:
        raise CipherDMError(f"no quantity is called {quantity!r}: choose from {', '.join(QUANTITIES)}.")
    frame = pd.DataFrame(record["rows"])
    sums = frame.pivot_table(
        index="group", columns="variant", values=quantity, aggfunc="sum", sort=False, fill_value=0
    ).reindex([group for group in GROUPS if group in set(frame["group"])])
    return pd.concat([sums, sums.sum().to_frame("all").T])


def split(whole: Costs, calls: Iterable[tuple[str, Costs]]) -> dict[str, Costs]:
    """Return a part's costs by kind, which add up to `whole`, from the costs of its calls by themselves, and the "rest".

    Nothing is negative: where calls take more than the whole, they are scaled down to it.
    """
    kinds: dict[str, Costs] = {}
    for kind, costs in calls:
        sums = kinds.setdefault(kind, dict.fromkeys(QUANTITIES, 0))
        kinds[kind] = {quantity: sums[quantity] + costs[quantity] for quantity in QUANTITIES}
    kinds[REST] = {}
    for quantity in QUANTITIES:
        # A call that only passes on has about nothing of its own, which noise may make negative.
        found = {kind: max(costs[quantity], 0) for kind, costs in kinds.items() if kind != REST}
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
    labels = {call: f"call {index}" for index, call in enumerate(dict.fromkeys(_all_calls(calls)))}
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
        for call in _all_calls({"": calls[part.label]}):
            plan += alone.pop(call, ())
    zeros = {
        public: {name: np.zeros(spec.shape, spec.dtype) for name, spec in specs.items() if spec.public is public}
        for public in (False, True)
    }
    return _Compiled(step, calls, labels, Plan(tuple(plan)), zeros[False], zeros[True])


def _specs(task: Task, graph: Graph) -> dict[str, Spec]:
    """Return specs of all that a step reads: shared values, the step's number, and what is computed once before."""
    specs = task.specs | {"step": task.specs["step.0"]}
    before = setup_graph(task.shape)
    if before is not None:
        inputs = [jax.ShapeDtypeStruct(specs[name].shape, specs[name].dtype) for name in before.inputs]
        results = jax.eval_shape(before.__call__, *inputs)
        specs |= {
            name: Spec(tuple(result.shape), str(result.dtype))
            for name, result in zip(before.outputs, results, strict=True)
        }
    return {name: specs[name] for name in graph.inputs}


def _all_calls(calls: Mapping[str, Sequence[ProtocolCall]]) -> Iterable[ProtocolCall]:
    """Yield every call, then those within it."""
    for made in calls.values():
        for call in made:
            yield call
            yield from _all_calls({"": call.inner})


def _typical(runs: Sequence[dict[str, Costs]]) -> dict[str, Costs]:
    """Return the medians of what several runs cost, but the least seconds."""
    return {
        label: {
            quantity: (min if quantity == "seconds" else statistics.median)([run[label][quantity] for run in runs])
            for quantity in QUANTITIES
        }
        for label in runs[0]
    }


def _rows(compiled: _Compiled, costs: Mapping[str, Costs]) -> list[dict[str, Any]]:
    kinds_of_block = {block.name: block.kind for block in unet_blocks(compiled.step.task.shape.config)}
    rows = []
    for part, calls in compiled.calls.items():
        own = [_own(call, compiled.labels, costs) for call in _all_calls({"": calls})]
        about = {
            "variant": compiled.step.variant.name,
            "part": part,
            "group": _GROUPS.get(kinds_of_block.get(part, part), _OTHERS),
        }
        rows += [about | {"kind": kind} | found for kind, found in split(costs[part], own).items()]
    return rows


def _own(call: ProtocolCall, labels: Mapping[ProtocolCall, str], costs: Mapping[str, Costs]) -> tuple[str, Costs]:
    """Return a call's kind, and its cost less that of the calls within it."""
    whole, inner = costs[labels[call]], [costs[labels[other]] for other in call.inner]
    return KINDS[call.name], {q: whole[q] - sum(found[q] for found in inner) for q in QUANTITIES}
