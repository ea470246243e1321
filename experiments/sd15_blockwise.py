"""Calls of a U-Net on three parties, block by block, for models that do not fit into memory. A run can be interrupted.

For each block the owner shares the block's weights into the parties' files, where the parties put what the block writes as
well. Once all three are done, the client notes the block in its journal; then what no later part reads is deleted. So the
largest block and the skip connections bound a party's memory, and for a single call its disk too; for several the weights stay
in the files until the last. An interrupted run goes on with the part that the journal lacks, in new processes of the parties,
which overwrite what an unfinished attempt has left in the files.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cipherdm.engine import LocalCluster, Node, Plan, Session, Spec, Walking, compile_plan
from cipherdm.engine.graph import as_words
from cipherdm.engine.programs import read_walk
from cipherdm.errors import CipherDMError
from cipherdm.kernels.narrow import sizes_of
from cipherdm.kernels.ring_program import WalkPlan
from cipherdm.kernels.rings import costs
from cipherdm.models import CONTEXT_KINDS, Block, UNet
from cipherdm.owner import prepare_weights
from cipherdm.owner.observe import load_calibration
from cipherdm.owner.prepared import chosen_blocks
from cipherdm.progress import Progress
from cipherdm.protocols import Protocols
from cipherdm.protocols.fast import WEIGHT_BITS
from cipherdm.protocols.fixed import decode, encode
from cipherdm.records import environment, load_average
from cipherdm.sampling.sample import engine_for
from cipherdm.sampling.steps import (
    COEFFICIENT_BITS,
    TIME_TERM,
    WEIGHTS,
    SchedulerStep,
    StepShape,
    block_node,
    value_name,
)
from cipherdm.schedules import Schedule

from .commands import most_memory, silent
from .journal import Journal, write_array


class Part(NamedTuple):
    """A block at a step, or with None the scheduler's step after the blocks."""

    step: int
    block: Block | None

    @property
    def name(self) -> str:
        """Name in records."""
        return "scheduler" if self.block is None else self.block.name


@dataclass(frozen=True, eq=False)
class UNetCalls:
    """Denoising steps of a U-Net that takes prompts, without guidance. Weights are read block by block if lazy.

    Values that a step computes have its number in their names, so that each is written once.
    """

    unet: UNet
    protocols: Protocols
    sample: np.ndarray  # float32 [B, C, H, W]
    encoder_hidden_states: np.ndarray  # embedded prompts, float32 [B, tokens, width]
    schedule: Schedule  # of one kind of step, without clipping or fresh noise

    def __post_init__(self):
        if self.unet.config.num_class_embeds is not None:
            raise CipherDMError("a model with classes is not called block by block; sample from it with text_to_image.")
        if self.protocols.time_embedding != "precomputed":
            name = self.protocols.name
            raise CipherDMError(f"{name} computes time terms on shares; choose a set whose owner does, as fast.")

    @cached_property
    def parts(self) -> list[Part]:
        """All blocks of all steps in order, without those that compute time terms. Those of prompts alone come once."""
        blocks, steps = chosen_blocks(self.unet.config, None), range(self.schedule.steps)
        of_step = [[b for b in blocks if step == 0 or b.kind not in CONTEXT_KINDS] for step in steps]
        return [Part(step, block) for step in steps for block in (*of_step[step], None)]

    @property
    def result(self) -> str:
        """Name of the last sample."""
        return f"sample@{self.schedule.steps}"

    @cached_property
    def _of_prompt(self) -> frozenset[str]:
        contexts = (part.block for part in self.parts if part.block is not None and part.block.kind in CONTEXT_KINDS)
        return frozenset(["encoder_hidden_states", *(name for block in contexts for name in block.outputs)])

    def reads(self, part: Part) -> tuple[str, ...]:
        """Names of the values that a part reads, of which "encoder_hidden_states" and "sample@0" are the client's."""
        names = ("sample", "eps") if part.block is None else part.block.inputs
        return tuple(name if name in self._of_prompt else f"{name}@{part.step}" for name in names)

    def writes(self, part: Part) -> tuple[str, ...]:
        """Names of the values that a part writes."""
        if part.block is None:
            return (f"sample@{part.step + 1}",)
        return tuple(name if name in self._of_prompt else f"{name}@{part.step}" for name in part.block.outputs)

    def unread(self, done: int) -> list[str]:
        """Return the names of values that no part after the first `done` reads."""
        before, after = self.parts[:done], self.parts[done:]
        later = {name for part in after for name in self.reads(part)} | {self.result}
        return [name for part in before for name in (*self.reads(part), *self.writes(part)) if name not in later]

    @cached_property
    def calibration(self) -> Mapping[str, np.ndarray] | None:
        """Calibration that the owner has stored; None if the protocol set needs none."""
        return None if self.protocols.prepare is None else load_calibration(self.unet)

    def inputs(self, ring: bool) -> dict[str, np.ndarray]:
        """Return the values that the client shares."""
        values = {"sample@0": self.sample, "encoder_hidden_states": self.encoder_hidden_states}
        bits = self.protocols.value_bits
        return values if bits is None else {name: encode(array, bits, ring) for name, array in values.items()}

    def node(self, part: Part, ring: bool) -> tuple[Node, dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Return a part as a node, what its owner shares for it, and what is public.

        The owner's are a block's weights, which go by diffusers' names, and those that belong to the step, such as time terms.
        """
        if part.block is None:
            update = SchedulerStep(None, self.protocols.value_bits, ring)
            rows = {"coefficients": self.schedule.coefficients, "prediction": self.schedule.prediction}
            if self.protocols.value_bits is not None:
                rows = {name: encode(array, COEFFICIENT_BITS, ring) for name, array in rows.items()}
            public = rows | {"step": np.int32(part.step)}
            return Node(part.name, update, (*public, *self.reads(part)), self.writes(part)), {}, public
        timestep = np.float32(self.schedule.timesteps[part.step : part.step + 1])
        chosen = {"blocks": [part.block.name], "calibration": self.calibration}
        weights = prepare_weights(self.unet, timestep, self.protocols, **chosen)
        sizes = {"steps": 1, "batch": len(self.sample), "noisy": False, "clip": None}
        shape = StepShape(self.unet.config, self.protocols, weights.layout, ring=ring, **sizes)
        arrays = {WEIGHTS + name: array for name, array in weights.constant.items()}
        of_step = {WEIGHTS + name: array[0] for name, array in weights.by_step.items()}
        of_step |= {value_name(name): array[:, 0] for name, array in weights.by_class.items()}
        names = {name: f"{name}@{part.step}" for name in of_step}
        arrays |= of_step
        bits = self.protocols.value_bits
        if bits is not None:
            for name in arrays:
                default = bits if name.endswith(TIME_TERM) else WEIGHT_BITS
                width = weights.bits.get(name.removeprefix(WEIGHTS), default)
                arrays[name] = encode(arrays[name], width, ring)
        node = block_node(part.block, shape)
        names |= dict(zip(part.block.inputs, self.reads(part), strict=True))
        node = replace(node, inputs=tuple(names.get(name, name) for name in node.inputs), outputs=self.writes(part))
        return node, {names.get(name, name): array for name, array in arrays.items()}, {}


Sizes = Mapping[str, Mapping[int, float]]
"""By block, the largest size of each secret value's words by number, at any step: what rings by value are planned from."""


def sizes_by_block(calls: UNetCalls, progress: Progress = silent) -> dict[str, dict[int, float]]:
    """Return how large numbers become with inputs of the owner's own.

    Raises:
        CipherDMError: a block compares or divides, and its rings cannot be planned.
    """
    bits, found = calls.protocols.walk_bits, {}
    words = {name: as_words(array, bits) for name, array in calls.inputs(ring=True).items()}
    for index, part in enumerate(calls.parts, start=1):
        progress(index - 1, len(calls.parts), f"{part.name}, planning rings")
        node, weights, public = calls.node(part, ring=True)
        read = words | {name: as_words(array, bits) for name, array in (weights | public).items()}
        specs = _specs(weights, public) | {name: Spec(words[name].shape) for name in node.inputs if name in words}
        program = read_walk(node.function, tuple(specs[name] for name in node.inputs), bits, by_value=True)
        if program is None:
            raise CipherDMError(f"{part.name} compares or divides, so SPU has to compute it; choose fast.")
        sizes, results = sizes_of(program, [read[name] for name in node.inputs])
        before = found.setdefault(part.name, {})
        found[part.name] = {number: max(size, before.get(number, 0.0)) for number, size in sizes.items()}
        words |= dict(zip(node.outputs, results, strict=True))
        for name in calls.unread(index):
            words.pop(name, None)
    return found


def ledger(calls: UNetCalls, sizes: Sizes | None = None, progress: Progress = silent) -> list[dict[str, Any]]:
    """Return a row for each part of a run that nobody makes: bytes of all parties and rounds, exact by the plan of its walk.

    The arguments are those of `run_on_parties`. Raises CipherDMError if SPU has to compute a part.
    """
    rows, specs = [], {name: Spec.of(array) for name, array in calls.inputs(ring=True).items()}
    for index, part in enumerate(calls.parts):
        progress(index, len(calls.parts), part.name)
        _, _, _, plan = _planned(calls, part, specs, sizes)
        specs |= plan.outputs
        (program,) = (each.program for each in plan.calls)
        if not program.walk:
            raise CipherDMError(
                f"{part.name} is computed by SPU, whose bytes no plan says; choose fast-64 or fast-rings."
            )
        size, rounds = costs(WalkPlan.from_json(program.code.decode()))
        rows.append(_about(part) | {"bytes": size, "rounds": rounds})
    return rows


def run_on_parties(
    calls: UNetCalls, folder: Path, about: Mapping[str, Any], progress: Progress = silent, sizes: Sizes | None = None
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Compute a run on three parties on this machine, or what of it is not finished.

    The folder holds the parties' files, and the journal with the run's identity, `about`. With `sizes` (`sizes_by_block`),
    rings are by value. Return the last sample, float32 [B, C, H, W], and a row for each part; "share_seconds" are for
    planning, and for preparing and sharing weights. Raises CipherDMError if a party fails, or if the folder holds another run.
    Finished parts are kept.
    """
    journal = Journal(folder, about)
    commit = environment()["commit"]  # now, since a long run's record is written when the checkout may have moved on
    result = folder / "sample.npy"
    if result.exists():
        return np.load(result), journal.rows
    parts, done = calls.parts, len(journal.rows)
    with LocalCluster(files=folder / "parties") as cluster:
        session = cluster.session(engine_for(calls.protocols), files="unet")
        inputs = {name: Spec.of(array) for name, array in calls.inputs(ring=True).items()}
        if done:
            session.delete(calls.unread(done))
        else:
            session.share(calls.inputs(ring=True), in_files=True)
        for index in range(done, len(parts)):
            progress(index, len(parts), f"{parts[index].name}, step {parts[index].step + 1}")
            written = [value for row in journal.rows for value in row["writes"].items()]
            specs = inputs | {name: Spec(tuple(shape), kind) for name, (shape, kind) in written}
            row, names = _run_part(session, calls, parts[index], specs, sizes)
            journal.add(row | {"commit": commit, "first_of_process": index == done})
            session.delete([*names, *calls.unread(index + 1)])  # now, since a part that is not noted is run again
        bits, sample = calls.protocols.value_bits, session.reveal(calls.result)
        sample = sample if bits is None else decode(sample, bits, ring=True)
        write_array(result, sample)
        session.delete([calls.result])
    return sample, journal.rows


def run_in_plaintext(calls: UNetCalls, progress: Progress = silent) -> np.ndarray:
    """Compute a run here, part by part; the emulation of a secure run gives NaN where the parties' words would overflow."""
    values = {name: jax.numpy.asarray(array) for name, array in calls.inputs(ring=False).items()}
    for index, part in enumerate(calls.parts, start=1):
        progress(index - 1, len(calls.parts), f"{part.name} in plaintext")
        node, weights, public = calls.node(part, ring=False)
        results = jax.jit(node.function)(*((weights | public | values)[name] for name in node.inputs))
        values.update(zip(node.outputs, results if isinstance(results, tuple) else (results,), strict=True))
        for name in calls.unread(index):
            values.pop(name, None)
    return np.asarray(values[calls.result])


def _specs(weights: Mapping[str, np.ndarray], public: Mapping[str, np.ndarray]) -> dict[str, Spec]:
    specs = {name: Spec.of(array) for name, array in weights.items()}
    return specs | {name: Spec.of(array, public=True) for name, array in public.items()}


def _about(part: Part) -> dict[str, Any]:
    kind = "scheduler" if part.block is None else part.block.kind
    return {"block": part.name, "kind": kind, "step": part.step}


def _planned(
    calls: UNetCalls, part: Part, specs: Mapping[str, Spec], sizes: Sizes | None
) -> tuple[Node, dict[str, np.ndarray], dict[str, np.ndarray], Plan]:
    """Return a part as `UNetCalls.node` does, and the plan by which parties compute it."""
    node, weights, public = calls.node(part, ring=True)
    specs = {**specs, **_specs(weights, public)}
    walking, protocols = None, calls.protocols
    if protocols.walk_bits is not None:
        walking = Walking(protocols.walk_bits, protocols.significant_bits)
        if sizes is not None:
            program = walking.read(node.function, tuple(specs[name] for name in node.inputs))
            walking = replace(walking, sizes={program.digest: sizes[part.name]})
    return node, weights, public, compile_plan([node], specs, keep=node.outputs, files=node.outputs, walking=walking)


def _run_part(
    session: Session, calls: UNetCalls, part: Part, specs: Mapping[str, Spec], sizes: Sizes | None
) -> tuple[dict[str, Any], list[str]]:
    """Run one part. Return its row, and the names of what was shared for it and no later step reads."""
    load = load_average()
    session.peak_memory(reset=True)
    start = time.perf_counter()
    node, weights, public, plan = _planned(calls, part, specs, sizes)
    parameters = sum(array.size for array in weights.values())
    again = part.block is not None and part.block.kind not in CONTEXT_KINDS  # the block is computed at each step
    of_step = {name for name in weights if not again or name.endswith(f"@{part.step}")}
    new = weights if part.step == 0 else {name: weights[name] for name in of_step}
    session.share(new, in_files=True)
    session.share(public, public=True)
    shared = time.perf_counter() - start
    last = part.step == calls.schedule.steps - 1
    names = [*public, *(weights if last else of_step)]
    del weights, new  # which may take gigabytes while the parties compute
    cost = session.run(plan)
    row = _about(part) | {
        **cost.totals(),
        "share_seconds": shared,
        "parameters": parameters,
        "calls": len(plan.calls),
        "peak_memory": most_memory(session.peak_memory()),
        "operators": cost.by_operator()["seconds"].to_dict(),
        "load_before": load,
        "writes": {name: (plan.outputs[name].shape, plan.outputs[name].dtype) for name in node.outputs},
    }
    return row, names
