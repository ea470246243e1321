"""Sums of gradients that are clipped example by example, for about the price of one backward pass.

The gradient of a linear layer's weight for one example is g^T a, with its inputs a [T, i] of T tokens and the gradients g
[T, o] of its outputs. Its squared norm is the sum over (a a^T) * (g g^T), so no gradient has to be formed to be measured
(Goodfellow, arXiv 1510.01799; Li et al., ICLR 2022, section 4). With each example's factor k = min(1, C / norm) the clipped sum
is one product (k g)^T a over all examples and tokens, without a second backward pass. A convolution is a linear layer of
patches, an embedding one of one-hot vectors; the gradients of normalisations and biases are vectors and are formed.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ..errors import CipherDMError, check_whole, refuse

Losses = Callable[[], Tensor]
"""() to losses [N K] of N examples with K draws each, the draws of one example side by side."""


class Outer(NamedTuple):
    """Gradients g^T a [o, i] of N examples, by g [N, T, o] and a [N, T, i]."""

    g: Tensor
    a: Tensor

    def squared_norms(self) -> Tensor:
        return _from_grams(self.g @ self.g.mT, self.a @ self.a.mT)

    def weighted_sum(self, factors: Tensor, like: Tensor) -> Tensor:
        return ((self.g * factors[:, None, None]).flatten(0, 1).mT @ self.a.flatten(0, 1)).reshape(like.shape)


class Rows(NamedTuple):
    """Gradients of N examples with respect to the rows of an embedding: g [N, T, d] go to the rows `indices` [N, T]."""

    g: Tensor
    indices: Tensor

    def squared_norms(self) -> Tensor:
        return _from_grams(self.g @ self.g.mT, (self.indices[:, :, None] == self.indices[:, None, :]).to(self.g))

    def weighted_sum(self, factors: Tensor, like: Tensor) -> Tensor:
        weighted = (self.g * factors[:, None, None]).flatten(0, 1)
        return torch.zeros_like(like).index_add_(0, self.indices.flatten(), weighted)


class Vectors(NamedTuple):
    """Gradients [N, d] of N examples themselves."""

    g: Tensor

    def squared_norms(self) -> Tensor:
        return self.g.square().sum(1)

    def weighted_sum(self, factors: Tensor, like: Tensor) -> Tensor:
        return (factors @ self.g).reshape(like.shape)


Gradients = Outer | Rows | Vectors


def _from_grams(g: Tensor, a: Tensor) -> Tensor:
    """Squared norms [N] by Gram matrices [N, T, T], at least as large as the rounding errors that cancelling tokens leave."""
    rounding = (g.diagonal(0, 1, 2) * a.diagonal(0, 1, 2)).sqrt().sum(1).square() * 2.0**-20
    return (g * a).sum((1, 2)).maximum(rounding)


# Each of these takes a layer, its inputs a and the gradients g of its outputs, of N K rows, and the number of examples N. It
# returns the gradients with respect to the weight and the bias. K draws of an example are as K times as many tokens.


def _linear(layer: nn.Linear, a: Tensor, g: Tensor, count: int) -> tuple[Gradients, Gradients]:
    g, a = (each.reshape(count, -1, each.shape[-1]) for each in (g, a))
    (tokens, out), inner = g.shape[1:], a.shape[2]
    # With many tokens the gradients take less room than g and a, and fewer products than Gram matrices.
    weight = Outer(g, a) if tokens * (out + inner) < out * inner else Vectors((g.mT @ a).flatten(1))
    return weight, Vectors(g.sum(1))


def _convolution(layer: nn.Conv2d, a: Tensor, g: Tensor, count: int) -> tuple[Gradients, Gradients]:
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(a, layer._reversed_padding_repeated_twice, mode=mode)  # torch's own list, also for padding="same"
    patches = F.unfold(padded, layer.kernel_size, dilation=layer.dilation, stride=layer.stride)
    return _linear(layer, patches.mT, g.flatten(2).mT, count)


def _layer_norm(layer: nn.LayerNorm, a: Tensor, g: Tensor, count: int) -> tuple[Gradients, Gradients]:
    normal, size = F.layer_norm(a, layer.normalized_shape, eps=layer.eps), math.prod(layer.normalized_shape)
    return tuple(Vectors(each.reshape(count, -1, size).sum(1)) for each in (g * normal, g))


def _group_norm(layer: nn.GroupNorm, a: Tensor, g: Tensor, count: int) -> tuple[Gradients, Gradients]:
    normal = F.group_norm(a, layer.num_groups, eps=layer.eps)
    size = layer.num_channels
    return tuple(Vectors(each.reshape(count, -1, size, each[0, 0].numel()).sum((1, 3))) for each in (g * normal, g))


def _embedding(layer: nn.Embedding, a: Tensor, g: Tensor, count: int) -> tuple[Gradients, ...]:
    if layer.padding_idx is not None:
        g = g * (a != layer.padding_idx)[..., None]
    return (Rows(g.reshape(count, -1, g.shape[-1]), a.reshape(count, -1)),)


KINDS = {
    nn.Linear: _linear,
    nn.Conv2d: _convolution,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.Embedding: _embedding,
}
"""Layers that may be trained: these classes themselves, because a derived one may compute something else."""


class ClippedSums:
    """Sums of per-example gradients of a module's trainable parameters, each example's clipped to the norm `clip`.

    Args:
        module: network whose parameters with requires_grad are trained, each in a layer of `KINDS` that is called once.
        clip: largest norm, over all trainable parameters together, that one example contributes.
        draws: number K of losses per example. Their gradients are averaged before they are clipped.

    Raises:
        CipherDMError: a setting is out of range, nothing is trainable, or a layer is not one that can be clipped.
    """

    def __init__(self, module: nn.Module, clip: float, draws: int = 1) -> None:
        check_whole("draws", draws, 1)
        refuse({f"clip must be a number above 0; got {clip!r}": not 0 < clip < math.inf})
        self.module, self.clip, self.draws = module, float(clip), draws
        self.layers = trainable_layers(module)
        self.parameters = [each for each in module.parameters() if each.requires_grad]
        refuse({"No parameter of the module is trainable: set requires_grad of some": not self.parameters})
        self.clear()

    def clear(self) -> None:
        """Set all sums to zero, as they are in the beginning."""
        self.sums = {parameter: torch.zeros_like(parameter) for parameter in self.parameters}

    def add(self, count: int, losses: Losses) -> None:
        """Add the clipped gradients of a microbatch of `count` examples, which must not depend on each other.

        An example whose gradient is not finite counts as zero. Nothing is said about it: an error would depend on the data.

        Raises:
            CipherDMError: there are not `draws` losses per example, a layer is called twice or without gradients, its inputs
                do not have one row per loss or are changed in place, or a buffer of the module changes.
        """
        gradients = self._gradients(count, losses)
        with torch.no_grad():
            squares = self.squared_norms(gradients)
            finite = squares.isfinite()
            if not finite.all():  # zero times NaN is NaN, so such examples are left out of the product
                squares = squares[finite]
                gradients = [(each, type(part)(*(factor[finite] for factor in part))) for each, part in gradients]
            factors = (self.clip / squares.sqrt()).clamp(max=1)
            for parameter, part in gradients:
                self.sums[parameter] += part.weighted_sum(factors.to(parameter.dtype), parameter)

    def norms(self, count: int, losses: Losses) -> Tensor:
        """Return the norms [count] of the gradients before clipping. They are as private as the examples."""
        gradients = self._gradients(count, losses)
        with torch.no_grad():
            return self.squared_norms(gradients).sqrt()

    def squared_norms(self, gradients: list[tuple[nn.Parameter, Gradients]]) -> Tensor:
        """Return the squared norm [N] of each example's gradient, over all parameters together."""
        return torch.stack([part.squared_norms().float() for _, part in gradients]).sum(0)

    def check(self, count: int, losses: Callable[[Tensor], Tensor]) -> None:
        """Make sure, on a few examples that are public or made up, that each gradient is its example's own.

        Compares the norms in one batch with those of one backward pass per example. They differ if examples depend on each
        other, if draws are not side by side, or if a parameter acts other than through its layer.

        Args:
            count: number of examples, at least 2.
            losses: indices [n] of examples to losses [n K], always the same.

        Raises:
            CipherDMError: norms differ by more than one part in 1000.
        """
        together, apart = self.norms(count, lambda: losses(torch.arange(count))), []
        for index in torch.arange(count):
            found = torch.autograd.grad(losses(index[None]).mean(), self.parameters, allow_unused=True)
            apart.append(torch.cat([each.flatten() for each in found if each is not None]).norm())
        if not torch.allclose(together, torch.stack(apart), rtol=1e-3):
            raise CipherDMError(
                "Gradients cannot be told apart by examples: examples depend on each other, their draws are not side by side, "
                "or a parameter is used outside its layer's call. Let every row be computed alone, or freeze those layers."
            )

    def _gradients(self, count: int, losses: Losses) -> list[tuple[nn.Parameter, Gradients]]:
        """One forward and one backward pass, which forms no parameter's gradient."""
        before = {name: (buffer, buffer._version) for name, buffer in self.module.named_buffers()}
        calls, values = self._forward(losses)
        for name, buffer in self.module.named_buffers():
            same, version = before.get(name, (None, 0))
            changed = buffer is not same or buffer._version != version
            refuse({f"A forward pass changes the buffer {name}, which leaves with the model: keep it fixed": changed})
        # No message tells the number of examples, which is private.
        whole = list(values.shape) == [count * self.draws] and values.requires_grad
        refuse({f"losses must return draws = {self.draws} losses per example, with gradients": not whole})
        for name, (a, version, _) in calls.items():
            other = f"One row per loss has to go through {name}: give it such inputs, or freeze it"
            changed = f"The inputs of {name} are changed in place after its call: leave them as they are, or freeze it"
            refuse({other: list(a.shape[:1]) != [len(values)], changed: a._version != version})
        edges = [edge for *_, edge in calls.values()]
        found = torch.autograd.grad(values.sum() / self.draws, edges, allow_unused=True)
        gradients = []
        for (name, (a, *_)), g in zip(calls.items(), found, strict=True):
            layer = self.layers[name]
            if g is not None:  # None if the losses do not depend on this call
                a = a.to(g.dtype) if a.is_floating_point() else a
                parts = KINDS[type(layer)](layer, a, g, count)
                named = zip((layer.weight, getattr(layer, "bias", None)), parts, strict=False)
                gradients += [(each, part) for each, part in named if each is not None and each.requires_grad]
        return gradients

    def _forward(self, losses: Losses) -> tuple[dict[str, tuple[Tensor, int, GradientEdge]], Tensor]:
        """Return each layer's inputs, their version, and where the gradients of its outputs will be; and the losses."""
        calls: dict[str, tuple[Tensor, int, GradientEdge]] = {}

        def watch(name: str) -> Callable:
            def called(layer: nn.Module, inputs: tuple, named: dict, output: Tensor) -> None:
                refuse({f"{name} is called twice in a forward pass: give each a layer, or freeze it": name in calls})
                refuse({f"{name} runs without gradients: leave out no_grad, or freeze it": not output.requires_grad})
                a = (*inputs, *named.values())[0].detach()
                # The edge, and not the output, because an activation may overwrite that.
                calls[name] = (a, a._version, get_gradient_edge(output))

            return called

        hooks = [layer.register_forward_hook(watch(name), with_kwargs=True) for name, layer in self.layers.items()]
        try:
            return calls, losses()
        finally:
            for hook in hooks:
                hook.remove()


def trainable_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that have trainable parameters, by name. Raises CipherDMError with all that cannot be clipped."""
    problems, owners, found = {}, {}, {}
    for name, layer in module.named_modules():
        own = {key: each for key, each in layer.named_parameters(recurse=False) if each.requires_grad}
        shown = f"{name or 'the module'} ({type(layer).__name__})"
        batch = isinstance(layer, nn.modules.batchnorm._NormBase)
        special = getattr(layer, "max_norm", None) is not None or getattr(layer, "scale_grad_by_freq", False)
        other = type(layer) not in KINDS or not own.keys() <= {"weight", "bias"}
        problems |= {
            f"{shown} mixes examples or keeps what it saw of them: take GroupNorm": batch,
            f"{shown} has max_norm or scale_grad_by_freq, which depend on a batch: leave them out": special,
            f"{shown} has trainable parameters that cannot be clipped: freeze it": bool(own) and other and not batch,
            f"{shown} has groups: freeze it": bool(own) and getattr(layer, "groups", 1) != 1,
        }
        for each in own.values():
            problems[f"{shown} shares a parameter with {owners.get(each)}: let each have its own"] = each in owners
            owners[each], found[name] = shown, layer
    refuse(problems, f"Per-example gradients are clipped in {', '.join(kind.__name__ for kind in KINDS)} alone: ")
    return found
