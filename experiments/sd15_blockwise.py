"""One call of a U-Net on three parties, block by block, for models that do not fit into memory. It can be interrupted.

For each block the owner shares the block's weights into the parties' files, where the parties put what the block writes as
well. Once all three are done, the client notes the block in its journal; then what no later block reads is deleted. So the
largest block and the skip connections bound a party's memory and disk. An interrupted call goes on with the block that the
journal lacks, in new processes of the parties, which overwrite what an unfinished attempt has left in the files.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cipherdm.engine import LocalCluster, Node, Plan, Session, Spec, Walking, compile_plan
from cipherdm.engine.graph import as_words
from cipherdm.engine.programs import read_walk
from cipherdm.errors import CipherDMError
from cipherdm.kernels.narrow import sizes_of
from cipherdm.kernels.ring_program import WalkPlan
from cipherdm.kernels.rings import costs
from cipherdm.models import Block, UNet
from cipherdm.owner import prepare_weights
from cipherdm.owner.observe import load_calibration
from cipherdm.owner.prepared import chosen_blocks
from cipherdm.progress import Progress
from cipherdm.protocols import Protocols
from cipherdm.protocols.fast import WEIGHT_BITS
from cipherdm.protocols.fixed import decode, encode
from cipherdm.records import environment, load_average
from cipherdm.sampling.sample import engine_for
from cipherdm.sampling.steps import TIME_TERM, WEIGHTS, StepShape, block_node, value_name

from .commands import most_memory, silent
from .journal import Journal, write_array


@dataclass(frozen=True, eq=False)
class UNetCall:
    """One call of a U-Net that takes prompts, at one timestep for the whole batch. Weights are read block by block if lazy."""

    unet: UNet
    protocols: Protocols
    sample: np.ndarray  # float32 [B, C, H, W]
    encoder_hidden_states: np.ndarray  # embedded prompts, float32 [B, tokens, width]
    timestep: float

    def __post_init__(self):
        if self.unet.config.num_class_embeds is not None:
            raise CipherDMError("a model with classes is not called block by block; sample from it with text_to_image.")
        if self.protocols.time_embedding != "precomputed":
            name = self.protocols.name
            raise CipherDMError(f"{name} computes time terms on shares; choose a set whose owner does, as fast.")

    @property
    def blocks(self) -> list[Block]:
        """Blocks of the U-Net in order, without those that compute time terms."""
        return chosen_blocks(self.unet.config, None)

    @cached_property
    def calibration(self) -> Mapping[str, np.ndarray] | None:
        """Calibration that the owner has stored; None if the protocol set needs none."""
        return None if self.protocols.prepare is None else load_calibration(self.unet)

    def inputs(self, ring: bool) -> dict[str, np.ndarray]:
        """Return the values that the client shares."""
        values = {"sample": self.sample, "encoder_hidden_states": self.encoder_hidden_states}
        bits = self.protocols.value_bits
        return values if bits is None else {name: encode(array, bits, ring) for name, array in values.items()}

    def node(self, block: Block, ring: bool) -> tuple[Node, dict[str, np.ndarray]]:
        """Return a block as a node, and the arrays that its owner shares for it: weights, and this timestep's time terms."""
        chosen = {"blocks": [block.name], "calibration": self.calibration}
        weights = prepare_weights(self.unet, np.float32([self.timestep]), self.protocols, **chosen)
        sizes = {"steps": 1, "batch": len(self.sample), "noisy": False, "clip": None}
        shape = StepShape(self.unet.config, self.protocols, weights.layout, ring=ring, **sizes)
        arrays = {WEIGHTS + name: array for name, array in weights.constant.items()}
        arrays |= {WEIGHTS + name: array[0] for name, array in weights.by_step.items()}
        arrays |= {value_name(name): array[:, 0] for name, array in weights.by_class.items()}
        bits = self.protocols.value_bits
        if bits is not None:
            for name in arrays:
                default = bits if name.endswith(TIME_TERM) else WEIGHT_BITS
                width = weights.bits.get(name.removeprefix(WEIGHTS), default)
                arrays[name] = encode(arrays[name], width, ring)
        return block_node(block, shape), arrays


Sizes = Mapping[str, Mapping[int, float]]
"""By block, the largest size of each secret value's words by number: what rings by value are planned from."""


def sizes_by_block(call: UNetCall, progress: Progress = silent) -> dict[str, dict[int, float]]:
    """Return how large numbers become in a call with inputs of the owner's own.

    Raises:
        CipherDMError: a block compares or divides, and its rings cannot be planned.
    """
    bits, found = call.protocols.walk_bits, {}
    words = {name: as_words(array, bits) for name, array in call.inputs(ring=True).items()}
    for index, block in enumerate(call.blocks, start=1):
        progress(index - 1, len(call.blocks), f"{block.name}, planning rings")
        node, weights = call.node(block, ring=True)
        read = words | {name: as_words(array, bits) for name, array in weights.items()}
        specs = tuple(Spec.of(weights[name]) if name in weights else Spec(words[name].shape) for name in node.inputs)
        program = read_walk(node.function, specs, bits, by_value=True)
        if program is None:
            raise CipherDMError(f"{block.name} compares or divides, so SPU has to compute it; choose fast.")
        found[block.name], results = sizes_of(program, [read[name] for name in node.inputs])
        words |= dict(zip(node.outputs, results, strict=True))
        words = {name: array for name, array in words.items() if name not in _unread(call.blocks, index)}
    return found


def ledger(call: UNetCall, sizes: Sizes | None = None, progress: Progress = silent) -> list[dict[str, Any]]:
    """Return a row for each block of a call that nobody makes: bytes of all parties and rounds, exact by the plan of its walk.

    The arguments are those of `call_on_parties`. Raises CipherDMError if SPU has to compute a block.
    """
    rows, specs = [], {name: Spec.of(array) for name, array in call.inputs(ring=True).items()}
    for index, block in enumerate(call.blocks):
        progress(index, len(call.blocks), block.name)
        _, _, plan = _planned(call, block, specs, sizes)
        specs |= plan.outputs
        (program,) = (each.program for each in plan.calls)
        if not program.walk:
            raise CipherDMError(
                f"{block.name} is computed by SPU, whose bytes no plan says; choose fast-64 or fast-rings."
            )
        size, rounds = costs(WalkPlan.from_json(program.code.decode()))
        rows.append({"block": block.name, "kind": block.kind, "bytes": size, "rounds": rounds})
    return rows


def call_on_parties(
    call: UNetCall, folder: Path, about: Mapping[str, Any], progress: Progress = silent, sizes: Sizes | None = None
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Compute a call on three parties on this machine, or the part of it that is not finished.

    The folder holds the parties' files, and the journal with the call's identity, `about`. With `sizes` (`sizes_by_block`),
    rings are by value. Return the predicted noise, float32 [B, C, H, W], and a row for each block; "share_seconds" are for
    planning, and for preparing and sharing weights. Raises CipherDMError if a party fails, or if the folder holds another call.
    Finished blocks are kept.
    """
    journal = Journal(folder, about)
    commit = environment()["commit"]  # now, since a long run's record is written when the checkout may have moved on
    result = folder / "eps.npy"
    if result.exists():
        return np.load(result), journal.rows
    blocks, done = call.blocks, len(journal.rows)
    with LocalCluster(files=folder / "parties") as cluster:
        session = cluster.session(engine_for(call.protocols), files="unet")
        inputs = {name: Spec.of(array) for name, array in call.inputs(ring=True).items()}
        if done:
            session.delete(_unread(blocks, done))
        else:
            session.share(call.inputs(ring=True), in_files=True)
        for index in range(done, len(blocks)):
            progress(index, len(blocks), blocks[index].name)
            written = [value for row in journal.rows for value in row["writes"].items()]
            specs = inputs | {name: Spec(tuple(shape), kind) for name, (shape, kind) in written}
            row = _run_block(session, call, blocks[index], specs, sizes)
            journal.add(row | {"commit": commit, "first_of_process": index == done})
            session.delete(_unread(blocks, index + 1))
        bits, eps = call.protocols.value_bits, session.reveal("eps")
        eps = eps if bits is None else decode(eps, bits, ring=True)
        write_array(result, eps)
        session.delete(["eps"])
    return eps, journal.rows


def call_in_plaintext(call: UNetCall, progress: Progress = silent) -> np.ndarray:
    """Compute a call here, block by block; the emulation of a secure call gives NaN where the parties' words would overflow."""
    values = {name: jax.numpy.asarray(array) for name, array in call.inputs(ring=False).items()}
    for index, block in enumerate(call.blocks, start=1):
        progress(index - 1, len(call.blocks), f"{block.name} in plaintext")
        node, weights = call.node(block, ring=False)
        results = jax.jit(node.function)(*((weights | values)[name] for name in node.inputs))
        values.update(zip(node.outputs, results if isinstance(results, tuple) else (results,), strict=True))
        values = {name: array for name, array in values.items() if name not in _unread(call.blocks, index)}
    return np.asarray(values["eps"])


def _planned(
    call: UNetCall, block: Block, specs: Mapping[str, Spec], sizes: Sizes | None
) -> tuple[Node, dict[str, np.ndarray], Plan]:
    """Return a block as a node, the arrays that its owner shares for it, and the plan by which parties compute it."""
    node, weights = call.node(block, ring=True)
    specs = {**specs, **{name: Spec.of(array) for name, array in weights.items()}}
    walking, protocols = None, call.protocols
    if protocols.walk_bits is not None:
        walking = Walking(protocols.walk_bits, protocols.significant_bits)
        if sizes is not None:
            program = walking.read(node.function, tuple(specs[name] for name in node.inputs))
            walking = replace(walking, sizes={program.digest: sizes[block.name]})
    return node, weights, compile_plan([node], specs, keep=node.outputs, files=node.outputs, walking=walking)


def _run_block(
    session: Session, call: UNetCall, block: Block, specs: Mapping[str, Spec], sizes: Sizes | None
) -> dict[str, Any]:
    """Run one block, and return its row."""
    load = load_average()
    session.peak_memory(reset=True)
    start = time.perf_counter()
    node, weights, plan = _planned(call, block, specs, sizes)
    session.share(weights, in_files=True)
    shared = time.perf_counter() - start
    names, parameters = list(weights), sum(array.size for array in weights.values())
    del weights  # which may take gigabytes while the parties compute
    cost = session.run(plan)
    session.delete(names)
    return {
        "block": block.name,
        "kind": block.kind,
        **cost.totals(),
        "share_seconds": shared,
        "parameters": parameters,
        "calls": len(plan.calls),
        "peak_memory": most_memory(session.peak_memory()),
        "operators": cost.by_operator()["seconds"].to_dict(),
        "load_before": load,
        "writes": {name: (plan.outputs[name].shape, plan.outputs[name].dtype) for name in node.outputs},
    }


def _unread(blocks: list[Block], done: int) -> list[str]:
    """Return the names of written values that no block after the first `done` reads."""
    later = {name for block in blocks[done:] for name in block.inputs} | {"eps"}
    return [name for block in blocks[:done] for name in (*block.inputs, *block.outputs) if name not in later]
