"""A step of a model as a program, for the tests of what computes it."""

import json
from itertools import islice

import numpy as np
import pytest
from walking import read, words_of

import cipherdm as cdm
from cipherdm.engine import Spec
from cipherdm.kernels.ring_program import RingProgram, in_the_clear
from cipherdm.protocols import FAST_64
from cipherdm.protocols.fast import VALUE_BITS
from cipherdm.protocols.fixed import encode
from cipherdm.sampling.sample import Settings, plaintext_steps
from cipherdm.sampling.steps import setup_graph, step_graph


@pytest.fixture(scope="session")
def step():
    """The second step of mnist01-tiny as a program, its words, and the next sample in plaintext."""
    unet = cdm.load_unet("data/models/mnist01-tiny")

    def task(ring):
        run_settings = Settings(steps=4, protocols=FAST_64, ring=ring)
        return run_settings.task(unet, run_settings.schedule(unet), 1, labels=[1])

    first, expected = (np.asarray(values["sample"]) for values in islice(plaintext_steps(task(False)), 2))
    on_shares = task(True)
    graphs = [setup_graph(on_shares.shape), step_graph(on_shares.shape)]
    values = on_shares.owner | on_shares.client | on_shares.public | {"step": on_shares.public["step.1"]}
    words = {name: words_of(array) for name, array in values.items()}
    words["sample"] = words_of(encode(first, VALUE_BITS, True))
    specs = on_shares.specs | {"step": Spec.of(values["step"], public=True)}
    for graph in graphs:
        program = read(graph, [specs[name] for name in graph.inputs])
        arrays = [words[name] for name in graph.inputs]
        if graph is graphs[0]:
            clear = in_the_clear(program, arrays)
            for name, number in zip(graph.outputs, program.outputs, strict=True):
                words[name], specs[name] = clear[number], Spec(program.shapes[number])
    return RingProgram.of_fields(json.loads(json.dumps(program.fields()))), arrays, expected
