"""The picture of a call block by block: what it draws is what the record holds."""

import numpy as np
from matplotlib.image import imread

from cipherdm.owner.prepared import chosen_blocks
from cipherdm.views.style import png
from cipherdm_experiments.full_call import SD15, full_call_figure, full_call_frame


def record():
    """Of Stable Diffusion's blocks, with numbers that tell them apart."""
    parts = [*((block.name, block.kind) for block in chosen_blocks(SD15, None)), ("scheduler", "scheduler")]
    rows = [
        {
            "block": name,
            "kind": kind,
            "seconds": 1.5 + index,
            "bytes": 1e6,
            "rounds": 3,
            "peak_memory": 2**30,
        }
        for index, (name, kind) in enumerate(parts)
    ]
    seconds = sum(row["seconds"] for row in rows)
    config = SD15.to_diffusers()
    return {
        "rows": rows, "seconds": seconds, "parameters": 859_520_964, "protocols": "fast-64", "config": config
    }  # fmt: skip


def test_every_block_is_in_a_part():
    frame = full_call_frame(record())
    assert set(frame["part"]) == {
        "first layer", *(f"{way} {level}" for way in ("down", "up") for level in range(4)), "middle", "last layer"
    }  # fmt: skip
    assert frame["seconds"].sum() == record()["seconds"]


def test_the_bars_are_as_long_as_the_rows_say(tmp_path):
    figure = full_call_figure(record())
    time, held = figure.axes
    assert np.isclose(sum(bar.get_width() for bar in time.patches), record()["seconds"])
    assert [bar.get_width() for bar in held.patches] == [1.0] * 11
    assert [label.get_text() for label in time.get_yticklabels()] == [
        "first layer, 64 x 64", "down 0, 64 x 64", "down 1, 32 x 32", "down 2, 16 x 16", "down 3, 8 x 8", "middle, 8 x 8",
        "up 0, 8 x 8", "up 1, 16 x 16", "up 2, 32 x 32", "up 3, 64 x 64", "last layer, 64 x 64",
    ]  # fmt: skip
    assert "859.5 million" in figure.get_label()
    (tmp_path / "picture.png").write_bytes(png(figure))
    assert imread(tmp_path / "picture.png").std() > 0.01
