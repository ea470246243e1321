"""One call of a U-Net on three parties, block by block, for models that do not fit into memory; it can be interrupted.

For each block the owner prepares the block's weights alone and shares them into the parties' files. The parties load them for
the block's programs, and put what the block writes into files as well. Once all three are done, the client notes the block in
its journal; then what no later block reads is deleted. So a party's memory and disk are bounded by the largest block and the
skip connections, and an interrupted call goes on with the block that the journal lacks, with new processes of the parties:
what an unfinished attempt has left in the files is overwritten.

One person plays all roles here, as everywhere with `LocalCluster`.
"""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cipherdm.engine import LocalCluster, Node, Plan, Session, Spec, compile_plan
from cipherdm.errors import CipherDMError
from cipherdm.files import replacing
from cipherdm.models import Block, UNet
from cipherdm.owner import prepare_weights
from cipherdm.owner.observe import load_calibration
from cipherdm.owner.prepared import chosen_blocks
from cipherdm.progress import Progress
from cipherdm.protocols import Protocols
from cipherdm.protocols.fast import WEIGHT_BITS
from cipherdm.protocols.fixed import decode, encode
from cipherdm.records import environment
from cipherdm.sampling.sample import engine_for
from cipherdm.sampling.steps import TIME_TERM, WEIGHTS, StepShape, block_node, value_name

_FILES = "unet"  # the name of the session's files


@dataclass(frozen=True, eq=False)
class UNetCall:
    """One call of a U-Net that takes prompts.

    Attributes:
        unet: the model; with `load_unet(folder, lazily=True)` its weights are read block by block.
        protocols: a set whose owner computes the time terms.
        sample: float32 [B, C, H, W].
        encoder_hidden_states: float32 [B, tokens, width].
        timestep: of the whole batch.

    Raises CipherDMError if the model has classes, or the set computes the time terms on shares.
    """

    unet: UNet
    protocols: Protocols
    sample: np.ndarray
    encoder_hidden_states: np.ndarray
    timestep: float

    def __post_init__(self):
        if self.unet.config.num_class_embeds is not None:
            raise CipherDMError("a model with classes is not called block by block; sample from it with text_to_image.")
        if self.protocols.time_embedding != "precomputed":
            raise CipherDMError(
                f"{self.protocols.name} computes time terms on shares; choose a set whose owner does, as fast."
            )

    @property
    def blocks(self) -> list[Block]:
        """In order, without those that compute time terms."""
        return chosen_blocks(self.unet.config, None)

    @cached_property
    def calibration(self) -> Mapping[str, np.ndarray] | None:
        """What the owner has measured, if the set needs it."""
        return None if self.protocols.prepare is None else load_calibration(self.unet)

    def inputs(self, ring: bool) -> dict[str, np.ndarray]:
        """What the client shares."""
        values = {"sample": self.sample, "encoder_hidden_states": self.encoder_hidden_states}
        bits = self.protocols.value_bits
        return values if bits is None else {name: encode(array, bits, ring) for name, array in values.items()}

    def node(self, block: Block, ring: bool) -> tuple[Node, dict[str, np.ndarray]]:
        """A block as a node, and what its owner shares for it: weights, and the terms of this timestep."""
        timesteps = np.float32([self.timestep])
        weights = prepare_weights(
            self.unet, timesteps, self.protocols, blocks=[block.name], calibration=self.calibration
        )
        shape = StepShape(
            self.unet.config, self.protocols, weights.layout, 1, len(self.sample), noisy=False, clip=None, ring=ring
        )
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

    def decoded(self, values: np.ndarray) -> np.ndarray:
        """What was predicted, from a revealed "eps"."""
        bits = self.protocols.value_bits
        return values if bits is None else decode(values, bits, ring=True)


class Journal:
    """Which blocks are finished, with what they took and the shapes of what they wrote. A file that is replaced at each entry.

    Args:
        path: of the file.
        call: what identifies the call; a journal of another one is refused.

    Raises:
        CipherDMError: the journal is of another call.
    """

    def __init__(self, path: Path, call: Mapping[str, Any]):
        self._path, self._call = path, dict(call)
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            stored = json.loads(path.read_text())
            if stored["call"] != self._call:
                raise CipherDMError(
                    f"{path} is of another model, or of other inputs: delete {path.parent}, or choose another folder."
                )
            self.rows = stored["rows"]

    def add(self, row: Mapping[str, Any]) -> None:
        """Note a finished block."""
        self.rows.append(dict(row))
        with replacing(self._path) as temporary:
            temporary.write_text(json.dumps({"call": self._call, "rows": self.rows}, indent=1) + "\n")

    @property
    def specs(self) -> dict[str, Spec]:
        """Of all that finished blocks have written."""
        return {name: Spec(tuple(shape), kind) for row in self.rows for name, (shape, kind) in row["writes"].items()}


def call_on_parties(
    call: UNetCall, folder: Path, about: Mapping[str, Any], progress: Progress | None = None
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Compute a call on three parties on this machine, or what is left of it.

    Args:
        call: what to compute.
        folder: for the parties' files and the journal.
        about: what identifies the call, JSON-ready: which weights, inputs and settings.
        progress: called before each block as `progress(done, total, name)`.

    Returns:
        The predicted noise, float32 [B, C, H, W], and a row for each block: block, kind, `CostReport.totals`,
        share_seconds (preparing and sharing the weights), parameters, peak_memory (bytes, of the party that held most),
        seconds by operator, load_before, commit (of the code that ran it), first_of_process.

    Raises:
        CipherDMError: a failure of a party, or the folder holds another call. Finished blocks are kept.
    """
    journal = Journal(folder / "journal.json", about)
    commit = environment()["commit"]  # now, since a long run's record is written when the checkout may have moved on
    result = folder / "eps.npy"
    if result.exists():
        return np.load(result), journal.rows
    blocks, names = call.blocks, [row["block"] for row in journal.rows]
    with LocalCluster(files=folder / "parties") as cluster:
        session = cluster.session(engine_for(call.protocols), files=_FILES)
        specs = {name: Spec.of(array) for name, array in call.inputs(ring=True).items()} | journal.specs
        if names:
            _delete_unread(session, blocks, len(names))
        else:
            session.share(call.inputs(ring=True), in_files=True)
        for index in range(len(names), len(blocks)):
            if progress is not None:
                progress(index, len(blocks), blocks[index].name)
            row, written = _run_block(session, call, blocks[index], specs)
            specs |= written
            writes = {name: (spec.shape, spec.dtype) for name, spec in written.items()}
            journal.add(row | {"commit": commit, "writes": writes, "first_of_process": index == len(names)})
            _delete_unread(session, blocks, index + 1)
        eps = call.decoded(session.reveal("eps"))
        with replacing(result) as temporary:
            np.save(temporary, eps)
        session.delete(["eps"])
    return eps, journal.rows


def call_in_plaintext(call: UNetCall, progress: Progress | None = None) -> np.ndarray:
    """The same here, with the call's functions, block by block: the reference, or the emulation of a secure call.

    The emulation is not a number where the parties' words would overflow.
    """
    values = {name: jax.numpy.asarray(array) for name, array in call.inputs(ring=False).items()}
    for index, block in enumerate(call.blocks, start=1):
        if progress is not None:
            progress(index - 1, len(call.blocks), f"{block.name} in plaintext")
        node, weights = call.node(block, ring=False)
        results = jax.jit(node.function)(*((weights | values)[name] for name in node.inputs))
        values.update(zip(node.outputs, results if isinstance(results, tuple) else (results,), strict=True))
        values = {name: array for name, array in values.items() if name not in _unread(call.blocks, index)}
    return np.asarray(values["eps"])


def _run_block(
    session: Session, call: UNetCall, block: Block, specs: Mapping[str, Spec]
) -> tuple[dict[str, Any], dict[str, Spec]]:
    """Run one block; returns its row, and the specs of what it wrote into files."""
    load = os.getloadavg()[0]
    session.peak_memory(reset=True)
    start = time.perf_counter()
    node, weights = call.node(block, ring=True)
    session.share(weights, in_files=True)
    shared = time.perf_counter() - start
    of_weights = {name: Spec.of(array) for name, array in weights.items()}
    parameters = sum(array.size for array in weights.values())
    del weights
    plan = compile_plan([node], specs | of_weights, keep=node.outputs, files=node.outputs)
    cost = session.run(plan)
    row = {
        "block": block.name,
        "kind": block.kind,
        **cost.totals(),
        "share_seconds": shared,
        "parameters": parameters,
        "calls": len(plan.calls),
        "peak_memory": max(session.peak_memory()),
        "operators": cost.by_operator()["seconds"].to_dict(),
        "load_before": load,
    }
    session.delete(of_weights)
    return row, _written(plan, node.outputs)


def _written(plan: Plan, names: tuple[str, ...]) -> dict[str, Spec]:
    """The specs of what a plan writes under these names."""
    specs = {}
    for call in plan.calls:
        specs.update(zip(call.outputs, call.program.outputs, strict=True))
    return {name: specs[name] for name in names}


def _delete_unread(session: Session, blocks: list[Block], done: int) -> None:
    session.delete(_unread(blocks, done))


def _unread(blocks: list[Block], done: int) -> list[str]:
    """The values between blocks that none after the first `done` reads."""
    later = {name for block in blocks[done:] for name in block.inputs} | {"eps"}
    return [name for block in blocks[:done] for name in (*block.inputs, *block.outputs) if name not in later]
