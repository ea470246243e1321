"""The client puts shares together only if what the three parties say of every number fits."""

import numpy as np
import pytest
from spu import api, libspu

from cipherdm import CipherDMError
from cipherdm.engine import EngineConfig
from cipherdm.engine.party import reason_of
from cipherdm.engine.wire import pieces, reconstruct, share_of

VALUES = (np.arange(4, dtype=np.float32), np.array([True, False, True]), np.int64([[5]]), np.zeros((0, 2), np.float32))


def made(value, visibility=libspu.Visibility.VIS_SECRET):
    io = api.Io(3, EngineConfig().runtime_config())
    return io, io.make_shares(np.asarray(value), visibility)


def changed(share, change):
    """The share with other bytes."""
    chunk, result = libspu.ValueChunk(), libspu.Share()
    chunk.ParseFromString(share.share_chunks[0])
    content = bytearray(chunk.content)
    change(content)
    chunk.content = bytes(content)
    result.meta, result.share_chunks = share.meta, [chunk.SerializeToString()]
    return result


@pytest.mark.parametrize("value", VALUES, ids=lambda value: str(value.dtype))
@pytest.mark.parametrize("visibility", [libspu.Visibility.VIS_SECRET, libspu.Visibility.VIS_PUBLIC])
def test_shares_that_fit_are_put_together(value, visibility):
    io, shares = made(value, visibility)
    np.testing.assert_array_equal(reconstruct(io, "y", shares), value)


@pytest.mark.parametrize("rank", range(3))
@pytest.mark.parametrize("component", range(2))
def test_a_component_that_one_party_has_changed_is_noticed(rank, component):
    """Each component comes from two parties, of which `io.reconstruct` hears one."""
    io, shares = made(VALUES[0])
    shares[rank] = changed(shares[rank], lambda content: content.__setitem__(8 * component, content[8 * component] ^ 1))
    other = (rank + (1 if component else -1)) % 3
    with pytest.raises(
        CipherDMError, match=f"^parties {min(rank, other)} and {max(rank, other)} sent shares of 'y' that do"
    ):
        reconstruct(io, "y", shares)


def test_both_pairs_of_a_party_are_named():
    io, shares = made(VALUES[0])
    shares[1] = changed(shares[1], lambda content: content.reverse())
    with pytest.raises(CipherDMError, match="^parties 0 and 1, and parties 1 and 2 sent shares"):
        reconstruct(io, "y", shares)


@pytest.mark.parametrize("change", [lambda content: content.pop(), lambda content: content.clear()])
def test_a_share_of_another_length_is_noticed(change):
    io, shares = made(VALUES[0])
    shares[2] = changed(shares[2], change)
    with pytest.raises(CipherDMError, match="parties 1 and 2, and parties 0 and 2 sent"):
        reconstruct(io, "y", shares)


def test_a_public_value_on_which_parties_differ_is_noticed():
    io, shares = made(VALUES[0], libspu.Visibility.VIS_PUBLIC)
    shares[2] = changed(shares[2], lambda content: content.reverse())
    with pytest.raises(CipherDMError, match="sent shares of 'y' that do not fit"):
        reconstruct(io, "y", shares)


def test_a_share_of_another_value_is_noticed():
    io, shares = made(VALUES[0])
    shares[0] = made(VALUES[0].astype(np.float64))[1][0]
    with pytest.raises(CipherDMError, match="sent shares of 'y' that do not fit"):
        reconstruct(io, "y", shares)


def test_a_share_that_has_not_come_whole_is_an_error():
    share = made(VALUES[0])[1][0]
    (piece,) = pieces("", "y", share)
    assert share_of([piece]).meta == share.meta
    piece.chunk_count = 2
    for received in ([], [piece]):
        with pytest.raises(CipherDMError, match="missing or incomplete"):
            share_of(received)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("what: \n\t[Enforce fail at x.cc:1] (a == b). \nStacktrace:\n#0 f()", "[Enforce fail at x.cc:1] (a == b)."),
        ("what: too short\nStacktrace:", "too short"),
        ("no more room", "no more room"),
        ("what: \n", "RuntimeError"),
    ],
)
def test_the_reason_of_an_error_is_its_first_line_that_says_something(text, reason):
    assert reason_of(RuntimeError(text)) == reason
