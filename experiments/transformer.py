"""Transformers under all sets in one run: a review, layers of MiniLM's and BERT's size, GPT-2's block; and Ditto's claims."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from matplotlib.figure import Figure

import cipherdm as cdm
from cipherdm.costs import LAN, WAN, Network
from cipherdm.engine import CostReport, Graph, LocalCluster, Node, Plan, Session, Spec, Walking, compile_plan, sizes_met
from cipherdm.errors import CipherDMError
from cipherdm.models.transformer import Transformer, TransformerConfig, place_of, transformer_shapes
from cipherdm.owner.transformers import fit_transformer
from cipherdm.progress import Progress, ProgressBar
from cipherdm.protocols import Protocols, named
from cipherdm.protocols.fixed import encode
from cipherdm.records import read_record
from cipherdm.sampling.rings import walking_of
from cipherdm.sampling.sample import engine_for
from cipherdm.sampling.texts import TextTask, classification_task, text_task
from cipherdm.views.style import PALETTE, describe, new_figure

from .commands import RecordOption, RepetitionsOption, finish, record_path, silent, split_names, take_turns, typical
from .markdown import duration, markdown, megabytes, times
from .target import Check, Command, Target, Value

SETS = ("direct", "puma", "nimbus", "mpcformer", "ditto", "fast-64", "fast-rings")
TEACHER, STUDENT = "reviews-tiny", "reviews-tiny-quad"
MINILM = "runs/reviews-minilm/model,runs/reviews-minilm-quad/model"  # as `cipherdm train` writes them; they do not ship
REVIEW = "Effective but too tepid biopic, though it has some wonderful moments."
# Sets with which the student is computed, and not its teacher.
TRAINED_FOR = ("mpcformer", "ditto", "fast-64", "fast-rings")
TOKENS = 32
ModelsOption = Annotated[
    str | None,
    typer.Option(help="A teacher and its student instead of reviews-tiny's: names or folders, with a comma."),
]
_SPREAD = 1.5  # standard deviation of random layers' scores
_SLOW = 0.01  # seconds of a round trip


@dataclass(frozen=True)
class Case:
    """What is computed: a review, or one layer of random weights, to whose tokens `before` others came, or none."""

    name: str
    kind: str = "bert"
    width: int = 128
    heads: int = 2
    tokens: int = TOKENS
    before: int = 0
    models: tuple[str, str] | None = None  # a trained model, and its student, instead of a layer

    def config(self, protocols: Protocols) -> TransformerConfig:
        """Return the configuration of two such layers, of which the first is taken: the last computes only what is read.

        Sets that a student is distilled for have its quadratic.
        """
        tokens, act_fn = self.before + self.tokens, "gelu_quad" if protocols.name in TRAINED_FOR else "gelu"
        size = {"width": self.width, "heads": self.heads, "inner": 4 * self.width, "tokens": tokens}
        return TransformerConfig(
            kind=self.kind, vocab_size=64, layers=2, act_fn=act_fn, eps=1e-12, labels=("a", "b"), **size
        )


CASES = (
    Case("a review, reviews-tiny", models=(TEACHER, STUDENT)),
    Case("layer, MiniLM", width=384, heads=12),
    Case("layer, BERT-base", width=768, heads=12, tokens=128),
    Case("block, GPT-2 tiny, prompt", "gpt2", heads=4),
    Case("block, GPT-2 tiny, a token", "gpt2", heads=4, tokens=1, before=TOKENS - 1),
)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A case under a set: what is shared, and the plan."""

    case: Case
    protocols: Protocols
    values: Mapping[str, np.ndarray]
    public: Mapping[str, np.ndarray]
    plan: Plan
    output: str

    def share(self, session: Session) -> None:
        """Send the parties all that a run reads."""
        session.share(dict(self.values))
        session.share(dict(self.public), public=True)


def prepare(case: Case, name: str) -> Prepared:
    """Return a case under a set."""
    protocols = named(name)
    if case.models is not None:
        model = cdm.load_transformer(case.models[name in TRAINED_FOR])
        task = classification_task(model, REVIEW, tokens=case.tokens, embedded=True, protocols=protocols)
        nodes = task.shape.nodes("block" if protocols.small_bits else "step")
        walking = walking_of(task, nodes)
        plan = compile_plan(nodes, task.specs, keep=["logits"], walking=walking)
        return Prepared(case, protocols, task.owner | task.client, {}, plan, "logits")
    task, nodes = layer(case, protocols)
    wanted = {name for node in nodes for name in node.inputs}
    values = {name: array for name, array in (task.owner | task.client).items() if name in wanted}
    specs = {name: Spec.of(array) for name, array in values.items()}
    specs |= {name: Spec.of(array, public=True) for name, array in task.public.items()}
    walking = None if protocols.walk_bits is None else Walking(protocols.walk_bits)
    if protocols.significant_bits is not None:
        runs = [values | layer(case, protocols, seed)[0].client | task.public for seed in range(4)]
        sizes = sizes_met(nodes, runs, specs, protocols.walk_bits)
        walking = Walking(protocols.walk_bits, protocols.significant_bits, sizes)
    output = nodes[-1].outputs[0]
    return Prepared(case, protocols, values, task.public, compile_plan(nodes, specs, [output], walking=walking), output)


def layer(case: Case, protocols: Protocols, seed: int = 0) -> tuple[TextTask, list[Node]]:
    """Return a task of random weights and tokens, and the nodes of its first layer; as one, where the set allows it."""
    config, generator = case.config(protocols), np.random.default_rng(seed)
    model = random_model(config)
    ids = generator.integers(0, config.vocab_size, (1, case.tokens))
    fits = fit_transformer(model, *_random_texts(config)) if protocols.prepare else None
    settings = {"embedded": True, "protocols": protocols, "ring": True, "known": {}, "calibration": fits}
    task = text_task(model, ids, np.ones_like(ids), **settings, places=config.tokens)
    if case.before:
        shape = replace(task.shape, after=True)
        cache = generator.standard_normal((2, 1, case.width, config.tokens), dtype=np.float32)
        cache *= np.arange(config.tokens) < case.before
        client = task.client | shape.encoded(dict(zip(("layers.0.k", "layers.0.v"), cache, strict=True)))
        public = shape.encoded(place_of(case.before, config.tokens, config.tokens))
        del public["place"]
        task = replace(task, shape=shape, client=client, public=public)
    every = task.shape.nodes("block")
    nodes = [node for node in every if node.label.startswith(("layers.0.", "mask"))]
    if protocols.small_bits is not None:
        # A layer begins with a conversion, but for the first. So that of the next one is counted here.
        nodes.append(next(node for node in every if node.label == "layers.1.norm1"))
        # GPT-2 adds to the tokens themselves, which a layer has in 32 bits from the one before, but for the first. So they are
        # shared in 32 bits here, and the conversion that only the first layer needs is not counted.
        words = encode(task.client["embeddings"], protocols.small_bits, ring=True, engine=protocols.walk_bits)
        task = replace(task, client=task.client | {"embeddings.small": words})
    else:
        nodes = [Graph("layer", tuple(nodes), (f"{nodes[-1].label}",)).as_node()]
    return task, nodes


def _random_texts(config: TransformerConfig) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(99).integers(0, config.vocab_size, (32, config.tokens))
    return ids, np.ones_like(ids)


def random_model(config: TransformerConfig) -> Transformer:
    """Return a transformer of random weights whose attention scores have the stated spread."""
    generator, params = np.random.default_rng(1), {}
    for name, shape in transformer_shapes(config).items():
        if len(shape) == 1:
            params[name] = np.full(shape, float(name.endswith("weight")), np.float32)
        else:
            scale = 1.0 if name.startswith("embeddings") else shape[1] ** -0.5
            # If queries and keys have variance v, scores have deviation v.
            scale *= _SPREAD**0.5 if name.endswith(("to_q.weight", "to_k.weight")) else 1.0
            params[name] = generator.normal(0, scale, shape).astype(np.float32)
    return Transformer(config, params)


def run(
    sets: Sequence[str] = SETS,
    cases: Sequence[Case] = CASES,
    networks: Sequence[Network] = (LAN, WAN),
    repetitions: int = 3,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Run each case under the sets in turns, without a network and, for a review, over shaped links; return the record."""
    rows = []
    turns = [(case, None) for case in cases] + [(cases[0], network) for network in networks]
    for place, (case, network) in enumerate(turns):
        found = [prepare(case, name) for name in sets]
        with LocalCluster(network=network) as cluster:
            peaks = {}

            def compute(one: Prepared, cluster=cluster, peaks=peaks) -> CostReport:
                session = cluster.session(engine_for(one.protocols))
                with session.alone():
                    one.share(session)
                    session.peak_memory(reset=True)
                    cost = session.run(one.plan)
                    peaks[one.protocols.name] = max(session.peak_memory(), default=0)
                    session.delete([*one.values, *one.public, *one.plan.outputs])
                return cost

            runs = [(f"{case.name}, {one.protocols.name}", partial(compute, one)) for one in found]
            # Over a slow network a run takes a minute, of which computing is little: one says it.
            slow = network is not None and network.round_trip > _SLOW
            counted = 1 if slow else repetitions
            size = len(SETS) * (repetitions + 1)
            settings = {"warm_up": not slow, "before": place * size, "total": len(turns) * size}
            costs = take_turns(runs, counted, progress, **settings)
        for one, reports in zip(found, costs, strict=True):
            about = {"case": case.name, "protocols": one.protocols.name, "network": network.name if network else None}
            spent = typical(reports)
            seconds = sorted(report.seconds for report in reports)
            spent |= {
                "ms": 1000 * seconds[len(seconds) // 2],
                "ms_low": 1000 * seconds[0],
                "ms_high": 1000 * seconds[-1],
            }
            rows.append(about | spent | {"peak_memory": peaks[one.protocols.name]})
    return {"benchmark": "transformer", "review": REVIEW, "repetitions": repetitions, "rows": rows}


def table(record: Mapping[str, Any]) -> pd.DataFrame:
    """Return a row for each case, network and set: ms, MB, messages, rounds, and how many times PUMA's they are less."""
    frame = pd.DataFrame(record["rows"]).fillna({"network": "-"})
    puma = frame[frame["protocols"] == "puma"].set_index(["case", "network"])
    keys = pd.MultiIndex.from_frame(frame[["case", "network"]])
    for column, name in (("ms", "faster"), ("bytes", "fewer bytes")):
        frame[name] = puma[column].reindex(keys).to_numpy() / frame[column].to_numpy()
    frame["MB"] = frame["bytes"] / 1e6
    return frame[["case", "network", "protocols", "ms", "MB", "sends", "rounds", "faster", "fewer bytes"]]


def transformer_table(measurements: Path, models: str | None = None) -> str:
    """Return the costs of transformers, as Markdown; of other models than those that ship if there are any."""
    record = record_of_models(measurements, "transformer", models)
    rows = [
        [row["case"] + ("" if row["network"] == "-" else f", {row['network']}"), row["protocols"]]
        + [duration(row["ms"] / 1000), megabytes(row["MB"] * 1e6), f"{row['sends']:,}", times(row["faster"])]
        + [times(row["fewer bytes"])]
        for row in table(record).to_dict("records")
    ]
    return markdown(["computed", "by", "time", "MB", "messages", "less time than PUMA", "fewer bytes"], rows)


CLAIMS = (
    # What, against which set, quantity, and the paper's range.
    ("Ditto takes less time than PUMA", "puma", "ms", 1.44, 2.35),
    ("Ditto sends fewer bytes than PUMA", "puma", "bytes", 1.37, 2.25),
    ("Ditto takes less time than MPCFormer", "mpcformer", "ms", 3.14, 4.40),
    ("Ditto sends fewer bytes than MPCFormer", "mpcformer", "bytes", 1.25, 1.66),
)
_COMPARED = CASES[:4]


def claims_table(measurements: Path) -> str:
    """Return Ditto's claims (arXiv 2405.05525), what came out in one run on today's SPU, and a verdict, as Markdown."""
    record = record_of_models(measurements, "transformer")
    rows = []
    for what, other, quantity, low, high in CLAIMS:
        ratios = [_ratio(record, case.name, other, "ditto", quantity) for case in _COMPARED]
        verdict = "holds" if min(ratios) >= low else "holds in part" if max(ratios) >= low else "does not carry over"
        rows.append([what, f"{low:.2f} to {high:.2f}x", *map(times, ratios), verdict])
    return markdown(["claim", "paper", *(case.name for case in _COMPARED), "here"], rows)


def _ratio(
    record: Mapping[str, Any], case: str, base: str, name: str, quantity: str, network: str | None = None
) -> float:
    found = {r["protocols"]: r[quantity] for r in record["rows"] if r["case"] == case and r["network"] == network}
    return found[base] / found[name]


TABLES = {
    "transformer": transformer_table,
    "transformer_minilm": partial(transformer_table, models=MINILM),
    "claims_ditto": claims_table,
}


def figure(records: Path) -> Figure:
    """Draw the bytes and messages of each set for a review, a layer of BERT's size, and a token of GPT-2."""
    record = record_of_models(records, "transformer")
    shown = [CASES[0].name, CASES[2].name, CASES[4].name]
    drawn = new_figure(9.4, 3.4)
    said = []
    for axis, case in zip(drawn.subplots(1, 3), shown, strict=True):
        rows = [row for row in record["rows"] if row["case"] == case and row["network"] is None]
        values, names = [row["bytes"] / 1e6 for row in rows], [row["protocols"] for row in rows]
        axis.barh(
            names, values, color=[PALETTE[2] if name.startswith("fast") else PALETTE[0] for name in names], height=0.7
        )
        axis.set(xscale="log", xlabel="MB of all parties; messages", xlim=(min(values) / 2, max(values) * 300))
        axis.set_title(case, fontsize=9.5)
        axis.invert_yaxis()
        for place, (value, row) in enumerate(zip(values, rows, strict=True)):
            axis.text(value, place, f" {value:,.2f}; {row['sends']:,}", va="center", fontsize=7.5)
        said.append(
            f"{case}: " + ", ".join(f"{name} {value:,.2f} MB" for name, value in zip(names, values, strict=True))
        )
    return describe(drawn, f"Bytes that three parties send for a transformer, by protocol set. {'; '.join(said)}.")


def measure(
    sets: Annotated[str, typer.Option(help="Names of protocol sets, separated by commas.")] = ",".join(SETS),
    repetitions: RepetitionsOption = 5,
    reduced: Annotated[bool, typer.Option("--reduced", help="A review alone, without a network.")] = False,
    models: ModelsOption = None,
    record: RecordOption = None,
) -> None:
    """Measure transformers under several sets in turns: time, bytes, messages; a review also over a LAN and a WAN."""
    cases, networks = (CASES[:1], ()) if reduced or models else (CASES, (LAN, WAN))
    if models:
        cases = (replace(CASES[0], name=f"a review, {named_pair(models)}", models=tuple(split_names(models))),)
    with ProgressBar("run") as bar:
        found = run(split_names(sets), cases, networks, repetitions, bar)
    finish(record_path(record, record_of("transformer", models)), found, table(found))


def short(name: str) -> str:
    """Return a model's name: that of its folder, or of its run's."""
    folder = Path(name)
    return folder.parent.name if folder.name == "model" else folder.name


def named_pair(models: str) -> str:
    """Return the name of the teacher of "TEACHER,STUDENT", as paths or names in data/models."""
    names = split_names(models)
    if len(names) != 2:
        raise CipherDMError(
            f"--models {models!r} names no two models: give a teacher and its student, with a comma between."
        )
    return short(names[0])


def record_of(benchmark: str, models: str | None) -> str:
    """Return the name of a record, which is of other models than those that ship if there are any."""
    return benchmark if models is None else f"{benchmark}_{named_pair(models)}"


def record_of_models(measurements: Path, benchmark: str, models: str | None = None) -> dict[str, Any]:
    """Read the record of `record_of`. Raises CipherDMError, with the command that makes it, if there is none."""
    command = f"cipherdm bench {benchmark}" + ("" if models is None else f" --models {models}")
    return read_record(measurements / f"{record_of(benchmark, models)}.json", command)


def _against(case: str, base: str, quantity: str, name: str = "fast-rings") -> Value:
    return lambda records: _ratio(records["transformer"], case, base, name, quantity)


_REVIEW, _BERT = CASES[0].name, CASES[2].name

TARGET = Target(
    "transformer",
    "Transformers under all sets: a review, layers of MiniLM's and BERT's size, a block of GPT-2; Ditto's claims",
    "Ditto takes 1.44 to 2.35 times less time than PUMA, with 1.37 to 2.25 times fewer bytes",
    "published",
    (Command("transformer", ("bench", "transformer"), (), ("--reduced", "--repetitions", "1")),),
    (
        Check("a review: bytes, PUMA / ditto", 4.22, 0.05, _against(_REVIEW, "puma", "bytes", "ditto"), 0.05, 2),
        Check("a review: time, PUMA / ditto", 1.1, 0.4, _against(_REVIEW, "puma", "ms", "ditto")),
        Check("a review: bytes, PUMA / fast-rings", 9.33, 0.1, _against(_REVIEW, "puma", "bytes"), 0.1, 2),
        Check("a review: bytes, ditto / fast-rings", 2.21, 0.05, _against(_REVIEW, "ditto", "bytes"), 0.05, 2),
        Check("layer of BERT-base: bytes, PUMA / fast-rings", 11.1, 0.3, _against(_BERT, "puma", "bytes")),
    ),
    figure,
    order=98,
)
