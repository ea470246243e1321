"""Pictures of secret sharing: what is drawn is the data, and sliders work from end to end."""

import re

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from cipherdm.sharing import Ring, ThreeParties, additive_shares, truncate
from cipherdm.views.shares import clock_explorer, message_diagram, product_grid, sighting_explorer, sightings
from cipherdm.views.style import PALETTE


@pytest.mark.parametrize("secret, seed", [(5, 0), (0, 3), (15, 20)])
def test_clocks_end_where_the_components_add_up(secret, seed):
    box = clock_explorer()
    box.set(secret=secret, seed=seed)
    components = additive_shares(np.array(secret), Ring(4), np.random.default_rng(seed))
    faces = box.shown.picture.split("<g ")[1:]
    for face, held in zip(faces, [(0, 1, 2), (0, 1), (1, 2), (2, 0)], strict=True):
        ends = re.findall(r'<circle cx="([-.\d]+)" cy="([-.\d]+)" r="3.2" fill="(#\w+)"', face)
        so_far = 0
        for index, (x, y, colour) in zip(held, ends, strict=True):
            so_far += int(components[index])
            end = np.arctan2(float(x), -float(y)) / (2 * np.pi) * 16  # from the top, clockwise
            assert (end - so_far + 8) % 16 == pytest.approx(8, abs=0.01) and colour == PALETTE[index]
        unknown = {f"x{chr(0x2080 + index)} = ?" for index in {0, 1, 2} - {*held}}
        assert set(re.findall(r"x. = \?", face)) == unknown
    assert f"all three: the secret is {secret}" in faces[0]


def test_clocks_under_sliders():
    box = clock_explorer()
    pictures = {box.shown.picture}
    for name, ends in (("secret", (0, 15)), ("seed", (0, 20))):
        for end in ends:
            box.set(**{name: end})
            pictures.add(box.shown.picture)
            secret, seed = box.values["secret"], box.values["seed"]
            words = additive_shares(np.array(secret), Ring(4), np.random.default_rng(seed))
            assert f"adds {words[0]}, {words[1]} and {words[2]} and ends at the secret {secret}" in box.shown.text
    assert len(pictures) >= 4


def test_sightings_are_shares_of_the_words():
    one, both = np.array([0, 0, 1, 3]), np.array([2, 2, 2, 2])
    figure = sightings(one, both, 2, 2)
    left, right = figure.axes
    for axis, expected in ((left, [50, 25, 0, 25]), (right, [0, 0, 100, 0])):
        (steps,) = axis.patches
        assert steps.get_data().values.tolist() == expected
        assert axis.lines[0].get_ydata()[0] == 25
    assert "4 sharings of 2" in figure.get_label() and "came up 0 to 2 times" in figure.get_label()


def test_sightings_under_a_slider():
    words = np.arange(16).repeat(3).reshape(16, 3)
    box = sighting_explorer(words, words, 4)
    assert list(box.controls["secret"].values) == list(range(16))
    first = box.shown.picture
    box.set(secret=15)
    assert box.shown.picture != first and "sharings of 15" in box.shown.text


def test_each_product_is_computed_by_a_party_that_holds_both_components():
    figure = product_grid()
    (axis,) = figure.axes
    cells = [patch for patch in axis.patches if isinstance(patch, Rectangle)]
    computed = set()
    for cell, product, party in zip(cells, axis.texts[::2], axis.texts[1::2], strict=True):
        column, row = product.get_position()[0], round(product.get_position()[1])
        number = int(party.get_text()[-1])
        assert product.get_text() == f"$x_{row}\\,y_{column}$"
        assert {row, column} <= {number, (number + 1) % 3}
        assert to_hex(cell.get_facecolor()).lower() == PALETTE[number].lower()
        computed.add((row, column))
    assert len(computed) == 9
    assert "party 2 computes" in figure.get_label()


def test_messages_are_arrows_between_their_parties():
    parties = ThreeParties()
    x = parties.share(np.ones(3))
    parties.open(truncate(parties, parties.multiply(x, x)))
    table = parties.transcript.table().iloc[3:]  # without the keys, as a notebook may choose
    box = message_diagram(table)
    places = {name: float(x) for x, name in re.findall(r'<text x="([\d.]+)" y="20"[^>]*>([^<]+)<', box.shown.picture)}
    assert list(places) == ["client", "party 0", "party 1", "party 2"]
    heads = [tuple(map(float, found)) for found in re.findall(r'd="M([\d.]+) ([\d.]+)l', box.shown.picture)]
    starts = [tuple(map(float, found)) for found in re.findall(r'd="M([\d.]+) ([\d.]+)H', box.shown.picture)]
    assert [x for x, _ in starts] == [places[name] for name in table["sender"]]
    assert [x for x, _ in heads] == [places[name] for name in table["receiver"]]
    heights = [y for _, y in heads]
    assert heights == [y for _, y in starts] == sorted(heights)
    for row in table.itertuples():
        assert f"round {row.round}, {row.sender} to {row.receiver}, {row.bytes:,} bytes" in box.shown.text
    assert ">round 3</text>" in box.shown.picture and ">multiply</text>" in box.shown.picture


def test_messages_come_one_after_the_other_and_party_by_party():
    parties = ThreeParties()
    parties.share(np.ones(3))
    box = message_diagram(parties.transcript.table())
    assert "client" in box.controls["person"].values
    box.set(count=4)
    assert box.shown.text == "Message 4 of 6: round 2, client to party 0, 48 bytes."
    assert box.shown.picture.count(" bytes</text>") == 4
    box.set(person="party 2")
    assert box.shown.text == "Message 4 of 6: none that party 2 sends or receives."
    assert box.shown.picture.count(" bytes</text>") == 2
    box.set(count=6)
    told = "round 1, party 0 to party 2, 32 bytes; round 1, party 2 to party 1, 32 bytes; round 2, client to party 2, 48 bytes"
    assert box.shown.text == f"All messages that party 2 sends or receives, in order: {told}."


def test_a_diagram_without_the_client_has_no_line_for_it():
    box = message_diagram(ThreeParties().transcript.table())
    assert list(box.controls["person"].values) == ["", "party 0", "party 1", "party 2"]
    assert "client" not in box.shown.picture
