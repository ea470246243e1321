"""Layers on `Fixed` numbers for tests: their parameters and inputs in plaintext, and the same on three parties."""

import jax.numpy as jnp
import numpy as np

from cipherdm.engine import Call, Plan, Spec, compile_program
from cipherdm.protocols import FAST
from cipherdm.protocols.fast import VALUE_BITS
from cipherdm.protocols.fixed import Fixed, decode, encode
from cipherdm.sampling.sample import engine_for


def on_shares(cluster, layer, params, *inputs):
    """What a layer makes of secret parameters and inputs on three parties.

    `params` are pairs of an array and its fraction bits, or public numbers.
    """
    return run_on_shares(cluster, layer, params, *inputs)[0]


def run_on_shares(cluster, layer, params, *inputs, calls=1):
    """The same, truncated to VALUE_BITS at the end, and the cost of so many calls."""
    session = cluster.session(engine_for(FAST))
    secret = {name: pair for name, pair in params.items() if isinstance(pair, tuple)}
    widths = [bits for _, bits in secret.values()] + [VALUE_BITS] * len(inputs)
    arrays = [np.asarray(array) for array, _ in secret.values()] + list(inputs)
    arrays = [encode(array, bits, ring=True) for array, bits in zip(arrays, widths, strict=True)]

    def entry(*shares):
        numbers = [Fixed.load(share, bits, ring=True) for share, bits in zip(shares, widths, strict=True)]
        local = params | dict(zip(secret, numbers[: len(secret)], strict=True))
        return layer(local, *numbers[len(secret) :]).truncated(VALUE_BITS).store()

    names = tuple(f"x{index}" for index in range(len(arrays)))
    session.share(dict(zip(names, arrays, strict=True)))
    program = compile_program(entry, tuple(Spec.of(array) for array in arrays))
    cost = session.run(Plan((Call(program, names, ("y",), "layer"),) * calls))
    return decode(session.reveal("y"), VALUE_BITS, ring=True), cost


def number(values, bits=VALUE_BITS):
    """Real numbers as a layer gets them in plaintext."""
    return Fixed.load(jnp.asarray(encode(values, bits, ring=False)), bits, ring=False)


def numbers(params):
    """Pairs of an array and its bits, and public numbers, as a layer gets them in plaintext."""
    return {name: number(*pair) if isinstance(pair, tuple) else pair for name, pair in params.items()}
