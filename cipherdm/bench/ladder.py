"""From `direct` to `fast`, one change after the other: what each of them brings to a denoising step."""

from dataclasses import replace

from ..models import UNet
from ..protocols import DIRECT, FAST
from ..protocols.mish_polynomial import mish_polynomial
from ..protocols.patches import conv2d_by_patches
from ..protocols.silu_polynomial import silu_polynomial
from ..protocols.softmax_bounded import softmax_bounded
from ..sampling import engine_for
from .step import Variant

_SCORE_BOUND = 4.0


def rungs(unet: UNet, activation_bound: float = 12.0) -> tuple[Variant, ...]:
    """The variants, each with one change more than the one before it.

    One polynomial for a whole model must reach as far as any of its activations, which `activation_bound` says.

    - "direct": the plain model.
    - "+ time terms": the owner computes them in plaintext.
    - "+ matrix products": convolutions as one matrix product each.
    - "+ polynomials": activations as one polynomial of degree 8 (Mish: 6), without comparisons and divisions.
    - "+ bounded softmax": no maximum and no clip.
    - "fast": truncations written out, and what calibration knows of each layer folded into the weights: normalisation
      without an inverse root, activations fitted to each channel and step, attention by features of tokens.
    """
    time = replace(DIRECT, time_embedding="precomputed")
    convolutions = replace(time, conv2d=conv2d_by_patches)
    polynomial = {"silu": silu_polynomial(activation_bound)}
    if unet.config.act_fn == "mish":
        polynomial["mish"] = mish_polynomial(activation_bound)
    activations = replace(convolutions, **polynomial)
    softmax = replace(activations, softmax=softmax_bounded(_SCORE_BOUND))
    named = {
        "direct": DIRECT,
        "+ time terms": time,
        "+ matrix products": convolutions,
        "+ polynomials": activations,
        "+ bounded softmax": softmax,
        "fast": FAST,
    }
    return tuple(Variant(name, replace(rung, name=name), engine_for(rung)) for name, rung in named.items())
