"""A denoising step under several sets of protocols that take turns on the same parties: time, bytes, sends, memory."""

# FROM cipherdm.bench.tasks:
# The sampling run whose steps are measured, for any kind of model.

# FROM cipherdm.views.claims:
# The paper's claimed ranges as bands, and what was measured in their place.

# FROM cipherdm.reproduce.claims:
# The paper's claim, as ratios against direct SPU, and the same ratios from records of `cipherdm bench step`.
#
# CipherDM (arXiv 2409.05414) claims 1.084 to 2.328 times less time and 1.212 to 1.791 times less communication than the plain
# model on SPU. Its release runs SPU with the Pade exponential; SPU's default is the Taylor exponential, which is cheaper. So
# there are two baselines, and a gain says little without the name of its baseline.

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from cipherdm import protocols as protocol_sets
from cipherdm.costs import count_path_bytes
from cipherdm.engine import CostReport, EngineConfig, LocalCluster, Node, Plan, Spec, compile_plan
from cipherdm.errors import CipherDMError
from cipherdm.models import UNet, UNetConditionConfig
from cipherdm.protocols import DIRECT, FAST, Protocols
from cipherdm.records import read_record, write_record
from cipherdm.sampling import Granularity, Task, engine_for, make_task, sampling_nodes
from cipherdm.sampling.steps import Loop, setup_graph, step_graph
from cipherdm.views.style import GREY, PALETTE, describe, new_figure

from .target import Check, Piece, Records, Target

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

Progress = Callable[[int, int, str], None]
"""Called before each piece of work as `progress(done, total, name)`."""


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
        specs |= _written(setup)
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


def write(path: str | Path, frame: pd.DataFrame, *, steps: int) -> None:
    """Write the rows of `run` as a record, with the machine and the versions."""
    write_record(path, as_record(frame, steps=steps))


def read(path: str | Path) -> pd.DataFrame:
    """The rows that `write` wrote. Raises CipherDMError, naming the command that makes it, if there is no such record."""
    path = Path(path)
    if not path.exists():
        model = path.stem.removeprefix("step_")
        raise CipherDMError(f"there is no record {path}: make it with `cipherdm bench step {model}`.")
    return pd.DataFrame(read_record(path)["rows"])


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


def _written(plan: Plan) -> dict[str, Spec]:
    """The specs of all that a plan writes."""
    return {name: spec for call in plan.calls for name, spec in zip(call.outputs, call.program.outputs, strict=True)}


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
        "path_bytes": round(statistics.median(count_path_bytes(cost) for cost in costs) / step.count),
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
    classes = unet.config.num_class_embeds
    pictures = {"count": batch} if classes is None else {"labels": [i % classes for i in range(batch)]}
    return make_task(unet, steps=steps, protocols=protocols, **pictures)


def takes_prompts(unet: UNet) -> bool:
    """Whether a model attends to prompts."""
    return isinstance(unet.config, UNetConditionConfig)


_AXES = {"time": "times less time", "bytes": "times fewer bytes"}

_BASELINES = {  # label, colour, marker
    "direct": ("against SPU's default", PALETTE[0], "o"),
    "direct-pade": ("against SPU with the Pade exponential", PALETTE[1], "s"),
}

_TICKS = (0.5, 1, 2, 5, 10, 20, 50)


def claims_figure(table: pd.DataFrame) -> Figure:
    """Gains in time and bytes of each set of protocols against both baselines, above the range that the paper claims.

    A thin line goes from the least to the most favourable runs. Right of 1 the set is cheaper than its baseline.

    Args:
        table: as `cipherdm.reproduce.claims.gains` returns it.
    """
    names = list(dict.fromkeys(zip(table["model"], table["protocols"], strict=True)))
    models = list(dict.fromkeys(table["model"]))
    places = {name: index + 0.8 * models.index(name[0]) for index, name in enumerate(names)}
    figure = new_figure(8.2, 1.7 + 0.33 * max(places.values(), default=1))
    panels = figure.subplots(1, 2, sharey=True)
    told = []
    for axis, (quantity, label) in zip(panels, _AXES.items(), strict=True):
        low, high = CLAIMED[quantity]
        axis.axvspan(low, high, color="#F0E442", alpha=0.45, linewidth=0, label="claimed by the paper", zorder=0)
        axis.axvline(1, color=GREY, linewidth=0.8, linestyle="--", zorder=1)
        for baseline, (text, colour, marker) in _BASELINES.items():
            rows = table[table["baseline"] == baseline]
            height = [places[name] + (-0.13 if baseline == "direct" else 0.13) for name in _names(rows)]
            if quantity == "time":
                axis.hlines(height, rows["time_low"], rows["time_high"], color=colour, linewidth=1.2, zorder=2)
            axis.scatter(rows[quantity], height, color=colour, marker=marker, s=34, label=text, zorder=3)
        axis.set(xscale="log", xlabel=label)
        shown = [tick for tick in _TICKS if tick <= 1.3 * max(table[quantity].max(), table["time_high"].max())]
        axis.set_xticks(shown)
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(axis="x", color="#dddddd")
        axis.set_axisbelow(True)
        told.append(f"{label}, claimed {low} to {high}: " + "; ".join(_told(table, quantity, name) for name in names))
    panels[0].set_yticks(list(places.values()), [protocols for _, protocols in names])
    panels[0].set_ylim(max(places.values()) + 0.6, -0.6 - 0.5)
    for model in models:
        first = min(place for name, place in places.items() if name[0] == model)
        panels[0].text(
            0.02, first - 0.5, model, transform=panels[0].get_yaxis_transform(), fontsize=9, weight="bold", va="center"
        )
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9
    )
    return describe(
        figure,
        f"Two panels of points on logarithmic axes. {'. '.join(told)}. The first number is against SPU's default, the second "
        "against SPU with the Pade exponential.",
    )


def _names(rows: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(rows["model"], rows["protocols"], strict=True))


def _told(table: pd.DataFrame, quantity: str, name: tuple[str, str]) -> str:
    rows = table[(table["model"] == name[0]) & (table["protocols"] == name[1])].set_index("baseline")[quantity]
    values = [f"{rows[baseline]:.2f}" for baseline in _BASELINES if baseline in rows and np.isfinite(rows[baseline])]
    return f"{name[1]} on {name[0]} {' and '.join(values)}"


@dataclass(frozen=True)
class Gain:
    """How many times less a set takes than a baseline, in "time", "bytes" or "sends" of a step, of one picture by default."""

    model: str
    protocols: str
    quantity: str
    baseline: str = "direct"
    benchmark: str = "step"
    batch: int = 1

    def __call__(self, records: Records) -> float:
        of_step = self.benchmark == "step"
        stem = step_record(self.model, self.batch) if of_step else f"{self.benchmark}_{self.model}"
        table = gains(records[stem]["rows"], self.batch)
        found = table[(table["protocols"] == self.protocols) & (table["baseline"] == self.baseline)]
        return float(found[self.quantity].iloc[0])


CLAIMED = {"time": (1.084, 2.328), "bytes": (1.212, 1.791)}
"""The lowest and the highest ratio that the paper claims."""

STEP_BATCHES = (1, 4, 16)
"""Numbers of pictures that a step is measured with."""


def step_record(model: str, batch: int = 1) -> str:
    """The name of the record of `bench step` for so many pictures, without its folder and ending."""
    return f"step_{model}" + (f"_batch{batch}" if batch > 1 else "")


def gains(rows: Sequence[Mapping[str, Any]], batch: int = 1) -> pd.DataFrame:
    """How many times less every set of protocols takes than each of the two baselines, from rows of `bench step`.

    Returns:
        A row for each model, set and baseline, with columns model, protocols, baseline, time, time_low, time_high, bytes,
        sends. The last five are baseline divided by set; time is of medians, time_low and time_high of the least favourable
        and of the most favourable runs.
    """
    found = []
    here = [row for row in rows if row["batch"] == batch]
    for row in here:
        for base in here:
            if base["model"] == row["model"] and base["variant"] in BASELINES and row["variant"] not in BASELINES:
                found.append(
                    {
                        "model": row["model"],
                        "protocols": row["variant"],
                        "baseline": base["variant"],
                        "time": base["seconds"] / row["seconds"],
                        "time_low": base["seconds_low"] / row["seconds_high"],
                        "time_high": base["seconds_high"] / row["seconds_low"],
                        "bytes": base["bytes"] / row["bytes"],
                        "sends": base["sends"] / row["sends"],
                    }
                )
    return pd.DataFrame(
        found, columns=["model", "protocols", "baseline", "time", "time_low", "time_high", "bytes", "sends"]
    )


def gains_by_batch(
    rows: Sequence[Mapping[str, Any]], protocols: str = "cipherdm", quantity: str = "time"
) -> pd.DataFrame:
    """`gains` of one set in one quantity: a row for each model and baseline, a column for each number of pictures."""
    tables = [gains(rows, batch).assign(batch=batch) for batch in sorted({row["batch"] for row in rows})]
    table = pd.concat(tables)
    mine = table[table["protocols"] == protocols]
    return mine.pivot(index=["model", "baseline"], columns="batch", values=quantity).rename_axis(columns="pictures")


def verdict(gain: float, quantity: str) -> str:
    """ "below", "within" or "above" the claimed range of "time" or "bytes"."""
    low, high = CLAIMED[quantity]
    return "below" if gain < low else "above" if gain > high else "within"


def verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """`gains` with the verdict on time and on bytes, for the set "cipherdm" that the claim is about."""
    mine = table[table["protocols"] == "cipherdm"]
    told = {f"{quantity}, claimed": [verdict(gain, quantity) for gain in mine[quantity]] for quantity in CLAIMED}
    return mine[["model", "baseline", "time", "bytes"]].assign(**told).reset_index(drop=True)


_SHOWN = {  # of each kind: the published function, the corrected one, and ours with its scales folded
    "exp": ("exp_cipherdm", "exp_corrected", "exp_bounded4_folded"),
    "silu": ("silu_cipherdm", "silu_corrected", "silu_degree8_bound6_folded"),
    "mish": ("mish_cipherdm", "mish_corrected", "mish_degree6_bound6_folded"),
    "softmax": ("softmax_cipherdm", "softmax_corrected", "softmax_bounded4_calibrated_folded"),
}

_WAYS = ("published", "corrected", "ours")


def function_gains(record: Mapping[str, Any], elements: int = 100_000) -> pd.DataFrame:
    """Each function that CipherDM replaces, four ways, from the record of `bench activations`.

    Returns:
        Indexed by kind and way ("direct", "direct-pade", "published", "corrected", "ours"): largest error, ms and bytes an
        element; how many times less time and fewer bytes than "direct" and than "direct-pade". Softmax rows are of about
        `elements` numbers in all. The error of our exp is a share of the value, on its own domain.
    """
    rows = [row for row in record["rows"] if row["elements"] == elements]
    found = {}
    for kind, functions in _SHOWN.items():
        names = {(f, "taylor"): way for f, way in zip(functions, _WAYS, strict=True)}
        names |= {("direct", "taylor"): "direct", ("direct", "pade"): "direct-pade"}
        mine = {
            names[key]: row for row in rows if row["kind"] == kind and (key := (row["function"], row["exp"])) in names
        }
        for way in (*BASELINES, *_WAYS):
            row = mine[way]
            found[kind, way] = {
                "largest error": row["max_error"],
                "ms": row["ms"],
                "bytes an element": row["bytes"] / elements,
                **{f"time, {base} /": mine[base]["ms"] / row["ms"] for base in BASELINES},
                **{f"bytes, {base} /": mine[base]["bytes"] / row["bytes"] for base in BASELINES},
            }
    return pd.DataFrame.from_dict(found, orient="index").rename_axis(["function", "way"])


RERUN = pd.DataFrame(
    {
        "FID": [117.13, 316.56, 242.65],
        "F1": [0.8575, 0.0820, 0.6000],
        "seconds": [14.12, 430.59, 442.23],
    },
    index=pd.Index(["plaintext", "CipherDM", "CipherDM with their correction"], name="binary MNIST on SPU"),
)
"""The independent re-run: "Secure Inference for Diffusion Models via Unconditional Scores", ICLR 2026."""

MODELS = ("mnist01-tiny", "mnist10")

PROMPT_MODEL = "sd-mini"


def gains_figure(records: Path) -> Figure:
    """Gains of a step against both baselines, with the paper's ranges as bands."""

    return claims_figure(gains_figure(step_rows(records)))


def prompt_gains(records: Path) -> Figure:
    """Gains of a step of the model that takes prompts."""

    return claims_figure(gains_figure(step_rows(records, (PROMPT_MODEL,))))


def step_rows(records: Path, models: Sequence[str] = MODELS) -> list[dict]:
    """The rows of all records of `bench step` on some models, by default the two of the paper's claims.

    Rows are of every number of pictures that was measured.

    Raises:
        CipherDMError: there are none.
    """
    stems = [step_record(model, batch) for model in models for batch in STEP_BATCHES]
    paths = [path for stem in stems if (path := records / f"{stem}.json").exists()]
    if not paths:
        raise CipherDMError(
            f"there is no record {records}/step_*.json: make them with `cipherdm bench step MODEL` of "
            f"{' and '.join(models)}."
        )
    return pd.concat([pd.DataFrame(read_record(path)["rows"]) for path in paths]).to_dict("records")


TINY, TEN = MODELS

# Batch size, then how it is measured in the full run, which takes turns of minutes for many pictures, and in the reduced run.
_STEPS = (
    (1, ("--repetitions", "3", "--at-once", "3"), ("--repetitions", "1", "--at-once", "1")),
    *(
        (
            batch,
            ("--repetitions", "2", "--at-once", "1"),
            ("--protocols", "direct,fast", "--repetitions", "1", "--at-once", "1"),
        )
        for batch in STEP_BATCHES[1:]
    ),
)

STEP = Target(
    "step",
    "One denoising step under each set of protocols",
    "CipherDM's functions take 1.084 to 2.328 times less time and 1.212 to 1.791 times less communication than direct SPU; "
    "ours take less still",
    "paper",
    tuple(
        Piece(
            step_record(model, batch),
            ("bench", "step", model, "--batch", str(batch)),
            full,
            reduced,
        )
        for batch, full, reduced in _STEPS
        for model in MODELS
    ),
    tuple(
        check
        for model, with_taylor, with_pade, ours, distilled, times, published in (
            (TINY, 1.22, 2.66, 12.6, 22.6, (8.2, 8.2), (1.16, 0.93, 1.87)),
            (TEN, 2.14, 3.43, 7.4, 12.5, (5.9, 5.3), (1.48, 1.29, 2.12)),
        )
        for check in (
            Check(
                f"{model}: bytes, direct / cipherdm",
                with_taylor,
                0.02,
                Gain(model, "cipherdm", "bytes"),
                0.02,
                2,
            ),
            Check(
                f"{model}: bytes, direct-pade / cipherdm",
                with_pade,
                0.03,
                Gain(model, "cipherdm", "bytes", "direct-pade"),
                0.03,
                2,
            ),
            Check(f"{model}: bytes, direct / fast", ours, 0.2, Gain(model, "fast", "bytes"), 0.2),
            Check(
                f"{model}: bytes, direct / distilled",
                distilled,
                0.3,
                Gain(model, f"fast on {model}-quad", "bytes"),
                0.3,
            ),
            *(
                Check(f"{model}: time, direct / fast{more}", time, 0.4 * time, Gain(model, "fast", "time", batch=batch))
                for more, batch, time in (("", 1, times[0]), (", 16 pictures", 16, times[1]))
            ),
            *(
                Check(f"{model}: time, {name}", time, 0.3, Gain(model, "cipherdm", "time", base, batch=batch), digits=2)
                for name, base, batch, time in (
                    ("direct / cipherdm", "direct", 1, published[0]),
                    ("direct / cipherdm, 16 pictures", "direct", 16, published[1]),
                    ("direct-pade / cipherdm", "direct-pade", 1, published[2]),
                )
            ),
        )
    ),
    gains_figure,
)

RINGS = Target(
    "rings",
    "A step with products on shares, in one ring and in two",
    "products on shares take less time than SPU's; the small ring sends less where layers are chosen for it",
    "ours",
    (
        Piece(
            f"rings_{TEN}",
            ("bench", "step", TEN, "--batch", "16", "--protocols", "direct,fast,fast-kernels,fast-mixed"),
            ("--repetitions", "3", "--at-once", "1"),
            ("--repetitions", "1", "--at-once", "1"),
        ),
        Piece(
            f"blocks_{TEN}",
            ("bench", "step", TEN, "--protocols", "fast,fast-kernels", "--granularity", "block"),
            ("--batch", "1,4,16", "--repetitions", "5"),
            ("--batch", "1", "--repetitions", "1"),
        ),
    ),
    (
        Check("bytes, direct / fast-kernels", 7.4, 0.2, Gain(TEN, "fast-kernels", "bytes", "direct", "rings", 16), 0.2),
        Check("bytes, direct / fast-mixed", 7.5, 0.2, Gain(TEN, "fast-mixed", "bytes", "direct", "rings", 16), 0.2),
        Check("time, direct / fast-kernels", 5.6, 2.2, Gain(TEN, "fast-kernels", "time", "direct", "rings", 16)),
    ),
)

PROMPT_STEP = Target(
    f"step-{PROMPT_MODEL}",
    "One denoising step of a model that takes prompts, with guidance",
    "at least 5 times less time, fewer bytes and fewer messages than direct SPU",
    "ours",
    (
        Piece(
            f"step_{PROMPT_MODEL}",
            ("bench", "step", PROMPT_MODEL, "--batch", "1"),
            ("--repetitions", "3", "--at-once", "3"),
            ("--repetitions", "1", "--at-once", "1"),
        ),
    ),
    (
        Check("bytes, direct / fast", 5, 0, Gain(PROMPT_MODEL, "fast", "bytes"), 0, bound="least"),
        Check("messages, direct / fast", 5, 0, Gain(PROMPT_MODEL, "fast", "sends"), None, bound="least"),
        Check("time, direct / fast", 5, 0, Gain(PROMPT_MODEL, "fast", "time"), None, bound="least"),
    ),
    prompt_gains,
)
