"""A U-Net as a picture."""

import cipherdm as cdm
from cipherdm import views
from cipherdm.models import TIME_KINDS, unet_blocks


def test_blocks_stand_at_the_size_of_picture_that_they_see():
    config = cdm.load_unet("mnist10").config
    blocks = [block for block in unet_blocks(config) if block.kind not in TIME_KINDS]
    sent = {block.name: 3e6 if block.kind == "resnet" else 1e6 for block in blocks}
    figure = views.unet_map(config, sent)
    at = {}
    for text in figure.axes[0].texts:
        at.setdefault(round(text.get_position()[1]), []).append(text.get_text())
    assert sum(map(len, at.values())) == len(blocks) + 3  # and a size for each level
    for level, side in enumerate((28, 14, 7)):
        assert f"{side} x {side}" in at[-level]
    assert "attention\n1" in at[-2] and at[0][-1] == "out\n1"
    residual = sum(3 for block in blocks if block.kind == "resnet") / (sum(sent.values()) / 1e6)
    assert f"resnet {residual:.0%}" in figure.get_label()
