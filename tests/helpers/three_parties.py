"""Three parties of a protocol in one process: their streams, and a way to pass their messages on."""

import itertools

import numpy as np

from cipherdm.kernels.streams import Stream, Streams


def shared(words):
    """Random pairs of the three parties for words, uint64."""
    components = np.random.default_rng(0).integers(0, 1 << 64, (3, *words.shape), dtype=np.uint64)
    components[2] = words - components[0] - components[1]
    return [components[[rank, (rank + 1) % 3]] for rank in range(3)]


def three_streams():
    """Each party's streams, from three keys."""
    keys = [bytes([rank + 1]) * 32 for rank in range(3)]
    return [Streams(Stream(keys[rank]), Stream(keys[(rank + 1) % 3])) for rank in range(3)]


def run(steps):
    """Run the three parties' protocols; return their pairs, and all messages as (round, sender, receiver, bytes)."""
    pairs, log, got = [None] * 3, [], [None] * 3
    for number in itertools.count():
        rounds = []
        for rank in range(3):
            try:
                rounds.append(steps[rank].send(got[rank]))
            except StopIteration as end:
                rounds.append(None)
                pairs[rank] = end.value
        if not any(rounds):
            return pairs, log
        assert all(rounds)  # all parties have the same rounds
        got = [{} for _ in range(3)]
        for sender, of in enumerate(rounds):
            for receiver, content in of.sends.items():
                assert rounds[receiver].receives[sender] == content.size
                got[receiver][sender] = content.copy()
                log.append((number, sender, receiver, content.copy()))
        assert [set(g) for g in got] == [set(of.receives) for of in rounds]
