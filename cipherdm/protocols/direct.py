"""The mathematical functions as JAX has them: the plaintext reference, and the plain model that is handed to SPU.

Nothing here is approximated. Arrays are channels first: on SPU a product with the few channels of a weight on the left
and the many pixels on the right is several times faster than the other way round.
"""

import jax
import jax.numpy as jnp
from jax import lax

from ..approximations.softmax import PADDING


def gelu(x):
    """Return x times the normal distribution function at x, by erf; PyTorch's default, not its tanh form."""
    return jax.nn.gelu(x, approximate=False)


def gelu_new(x):
    """Return GELU in its tanh form, GPT-2's."""
    return jax.nn.gelu(x, approximate=True)


def group_norm(params, x, *, groups, eps):
    """Normalise x [B, C, ...] over each of `groups` groups of consecutive channels, then scale and shift by channel."""
    grouped = x.reshape(x.shape[0], groups, -1)
    centred = grouped - jnp.mean(grouped, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return with_affine(params, (centred * lax.rsqrt(variance + jnp.float32(eps))).reshape(x.shape))


def norm_activation(params, x, *, groups, eps, act_fn, modulation=None, protocols):
    """Normalise x [B, C, ...], scale by 1 + modulation[0] and shift by modulation[1] [b, C] if given, and activate."""
    y = protocols.group_norm(params, x, groups=groups, eps=eps)
    if modulation is not None:
        scale, shift = (values[:, :, None, None] for values in modulation)
        y = y * (scale + jnp.float32(1)) + shift
    return getattr(protocols, act_fn)(y)


def layer_norm(params, x, *, eps):
    """Normalise x [B, C, ...] over its channels, axis 1, then scale and shift by channel."""
    centred = x - jnp.mean(x, axis=1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=1, keepdims=True)
    return with_affine(params, centred * lax.rsqrt(variance + jnp.float32(eps)))


def conv2d(params, x, *, stride=1, padding=((0, 0), (0, 0))):
    """Convolve x [B, C, H, W] with weight [O, C, K, K] as PyTorch does; padding is ((top, bottom), (left, right))."""
    y = lax.conv_general_dilated(
        x, params["weight"], (stride, stride), padding, dimension_numbers=("NCHW", "OIHW", "NCHW")
    )
    return y + by_channel(params["bias"], 4) if "bias" in params else y


def linear(params, x):
    """Multiply weight [O, C] by x [B, C] or [B, C, N], along x's axis 1."""
    product = lax.dot_general(params["weight"], x, (((1,), (1,)), ((), ())))  # [O, B] or [O, B, N]
    y = jnp.swapaxes(product, 0, 1)
    return y + by_channel(params["bias"], x.ndim) if "bias" in params else y


def projections(layers, x, *, protocols):
    """Return the results of several linear layers on one x [B, C, N]."""
    return tuple(protocols.linear(layer, x) for layer in layers)


def attention(params, q, k, v, *, scale, softmax, mask=None, among=None):
    """Return scaled dot-product attention of q [B, heads, d, N] to k and v [B, heads, d, M], giving [B, heads, d, N].

    Args:
        params: not used.
        q, k, v: queries, keys and values.
        scale: factor of the scores.
        softmax: function over the last axis.
        mask: [B, M], 0 for tokens and PADDING for what is none.
        among: public arrays: [N or 1, M], 1 where a query may attend to a token and 0 elsewhere, and `shares_among` its sums.
    """
    heads = ((0, 1), (0, 1))
    # The scale goes to the queries, d N numbers, and not to the scores, N M.
    scores = lax.dot_general(q * jnp.float32(scale), k, (((2,), (2,)), heads))
    padding = jnp.float32(PADDING)
    if among is not None:
        kept = among[0][None, None]
        mask = (jnp.float32(1) - kept) * padding
        # Below the first token's score, which always counts: what does not is out of the way, however low scores are.
        lower = jnp.where(kept > jnp.float32(0.5), scores, scores[..., :1] + padding)
    elif mask is not None:
        mask = mask[:, None, None, :]
        lower = scores + mask
    if mask is None:
        weights = softmax(scores)
    else:
        weights = softmax.masked(scores, mask) if hasattr(softmax, "masked") else softmax(lower)
    return lax.dot_general(v, weights, (((3,), (3,)), heads))


def activation(params, x, *, act_fn, protocols):
    """Return the activation called `act_fn` of x [B, C, N], which the linear layer with these parameters made."""
    return getattr(protocols, act_fn)(x)


def rescaled(params, y):
    """Return y, a `layer_norm`'s result, with its weight and bias: as it is, since that has them."""
    return y


def modulated(y, shift, scale):
    """Return y [B, C, N], a `layer_norm`'s result, times 1 + scale plus shift, both [b, C]."""
    return y * (scale + jnp.float32(1))[:, :, None] + shift[:, :, None]


def gated(y, gate):
    """Return y [B, C, N] times a gate [b, C]."""
    return y * gate[:, :, None]


def geglu(params, x, *, protocols):
    """Return the first half of x [B, 2 C, N] times the GELU of the second: [B, C, N]."""
    half = x.shape[1] // 2
    return x[:, :half] * protocols.gelu(x[:, half:])


def with_affine(params, y):
    """Scale and shift y [B, C, ...] by channel, if there is a "weight" and a "bias"."""
    if "weight" not in params:
        return y
    return y * by_channel(params["weight"], y.ndim) + by_channel(params["bias"], y.ndim)


def by_channel(values, ndim):
    """Return a vector [C] in a shape that broadcasts along axis 1 of an array with `ndim` axes."""
    return values.reshape(1, -1, *[1] * (ndim - 2))


def linear_attention(params, q, k, v, *, scale):
    """Return attention without softmax, for models that are trained or distilled with it; shapes as in `attention`.

    It is two products with matrices of d x d, whatever the number of tokens, and has no exponential and no division.

    Formula:  y_n = (1/M) sum over m of (1 + s q_n k_m) v_m, softmax attention to first order in the scores s q_n k_m.
    Domain:   all scores, as a function of its own. Weights can be negative, and their sum is not 1 in general.
    Source:   linear attention (Katharopoulos et al. 2020, arXiv 2006.16236) with the kernel 1 + q k and no denominator.
    """
    heads, count = ((0, 1), (0, 1)), k.shape[3]
    summed = lax.dot_general(v, k, (((3,), (3,)), heads)) * jnp.float32(scale / count)  # [B, heads, d, d]
    mean = jnp.mean(v, axis=3, keepdims=True)
    return lax.dot_general(summed, q, (((3,), (2,)), heads)) + mean
