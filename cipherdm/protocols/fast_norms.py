"""Normalisations and GEGLU of FAST for transformers, and for U-Nets whose means and variances a prompt moves.

`fast.group_norm` takes a mean for known and replaces 1/sqrt(variance) by a line, both calibrated by step and class, which is
cheap and right as long as images of a class are alike. With prompts there are no classes: backgrounds change a group's mean,
prompts its variance, and the tokens of one image have variances of their own. So here the mean is computed, and the line
only starts Newton's iteration, whose steps square its error.

Source:   Newton's method, as in `approximations.InverseSqrt`.
"""

from .fast import GAIN_BITS, POWER_BITS, VALUE_BITS, line_minus_quartic
from .fast import group_norm as group_norm_by_line
from .fixed import broadcast_to, concatenate, means, sums, sums_of_squares

# Fraction bits of variances in units in which they are about 1, and of their inverse roots. They are right below
# 2^(18 - 14) = 16: u/2 up to u = 32, and 1/sqrt(u) down to u = 1/256.
ROOT_BITS = 14

# Fraction bits of the factors that make variances of sums of squares. With a square's 20 they are 56, of which a truncation
# to ROOT_BITS takes 42, the most at once.
FACTOR_BITS = 36
SCALE_BITS = GAIN_BITS - ROOT_BITS - VALUE_BITS  # of a DiT's scales, times a result of `layer_norm`
WEIGHT_BITS = GAIN_BITS - ROOT_BITS  # of a normalisation's weight: with its factor, the inverse root, GAIN_BITS


def group_norm(params, x, *, groups, eps):
    """Normalise x [B, C, ...] over its groups, times weight [C] plus shift [C]. 22 messages, and 11 per Newton step.

    Without the parameter "newton", the number of Newton's steps, this is `fast.group_norm`. `eps` is in the parameters. The
    result has GAIN_BITS + VALUE_BITS.
    """
    if "newton" not in params:
        return group_norm_by_line(params, x, groups=groups, eps=eps)
    x = x.truncated(VALUE_BITS)
    batch, channels = x.shape[:2]
    rows = x.reshape(batch * groups, -1)
    centred = rows - broadcast_to(means(rows, 1)[:, None], rows.shape)
    roots = inverse_root(params, sums_of_squares(centred).reshape(batch, groups))
    roots = broadcast_to(roots[:, :, None], (batch, groups, channels // groups)).reshape(batch, channels)
    gain = broadcast_to(params["weight"][None], (batch, channels)) * roots
    y = gain[:, :, None] * centred.reshape(batch, channels, -1) + params["shift"][None, :, None]
    return y.reshape(*x.shape)


def layer_norm(params, x, *, eps):
    """Normalise x [B, C, N] over its channels, each token by itself. 19 messages, and 11 per Newton step.

    Its weight and bias, and a constant factor, are in the linear layer that follows; `eps` is in the parameters. The result has
    ROOT_BITS + VALUE_BITS.
    """
    x = x.truncated(VALUE_BITS)
    centred = x - broadcast_to(means(x, 1)[:, None], x.shape)
    roots = inverse_root(params, sums(centred * centred, 1))
    return broadcast_to(roots[:, None], x.shape) * centred


def rescaled(params, y):
    """Return y, a result of `layer_norm`, times weight [C] plus bias [C]: what BERT adds to. 3 messages."""
    return params["weight"][None, :, None] * y + params["bias"][None, :, None]


def modulated(y, shift, scale):
    """Return y [B, C, N], a result of `layer_norm`, times scale plus shift, both [b, C]; the 1 is in the scale. 8 messages."""
    return (y * scale[:, :, None] + shift[:, :, None]).truncated(VALUE_BITS)


def gated(y, gate):
    """Return y [B, C, N] times a gate [b, C]. 8 messages."""
    return y.truncated(VALUE_BITS) * gate[:, :, None]


def inverse_root(params, totals):
    """Return 1/sqrt(u) at ROOT_BITS, for variances u in units of a calibrated one, from sums of squares at 2 VALUE_BITS.

    params["factors"] and params["offsets"], both [2, K or 1], make of the totals [B, K] u/2, and the line that Newton's
    iteration starts from; params["newton"] is the number of its steps, y <- y + y/2 - (u/2) y^3.
    8 messages, and 11 per step. Right for 1/256 < u < 32.
    """
    # u/2 and the line in one product, and (u/2 y) and y^2 in one: as many messages as for one of them.
    shape = (2, *totals.shape)
    both = broadcast_to(params["factors"][:, None], shape) * broadcast_to(totals[None], shape)
    both = (both + broadcast_to(params["offsets"][:, None], shape)).truncated(ROOT_BITS)
    half, y = both[0], both[1]
    for _ in range(params["newton"]):
        products = concatenate([half[None], y[None]]) * broadcast_to(y[None], shape)
        y = (y + y.times_power_of_two(-1) - products[0] * products[1]).truncated(ROOT_BITS)
    return y


def geglu(params, x, *, protocols):
    """Return the first half of x [B, 2 C, N] times the GELU of the second. 22 messages.

    GELU is x/2 plus an even function, which is minus a quartic in z^2 for z = s x: the scale s is in the second half
    already, and constants a to d and "linear" [C] are as those of `fast.norm_activation`. The result has 4 POWER_BITS.
    """
    x = x.truncated(POWER_BITS)
    half = x.shape[1] // 2
    constants = (params[name][None, :, None] for name in ("a", "b", "c", "d", "linear"))
    return line_minus_quartic(x[:, half:], *constants) * x[:, :half]
