"""Norms and clipped sums of examples' gradients are those of one backward pass per example, and of opacus."""

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from torch import nn

from cipherdm import CipherDMError
from cipherdm.private import ClippedSums, train_only


class EveryLayer(nn.Module):
    """All layers that can be clipped, on pictures [N, 3, 9, 9] and words [N, 5]."""

    def __init__(self, padding: int | None = None) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6, padding_idx=padding)
        self.wide = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.groups = nn.GroupNorm(2, 6)
        self.narrow = nn.Conv2d(6, 6, 1, bias=False)
        self.tokens = nn.LayerNorm(6)
        self.inner = nn.Linear(6, 40)
        self.outer = nn.Linear(40, 6, bias=False)
        self.head = nn.Linear(6, 1)

    def forward(self, pictures, words):
        features = self.narrow(torch.tanh(self.groups(self.wide(pictures)))).flatten(2).mT
        tokens = self.tokens(torch.cat((features, self.words(words)), 1))
        return self.head(torch.tanh(self.outer(torch.tanh(self.inner(tokens)))).square().mean(1))[:, 0]


@pytest.fixture(scope="module")
def every_layer():
    """The module, and its inputs for 5 examples, in which some words come twice."""
    torch.manual_seed(1)
    words = torch.tensor([[0, 3, 3, 1, 2], [4, 4, 4, 4, 4], [0, 0, 0, 0, 0], [5, 6, 7, 8, 9], [10, 0, 10, 1, 1]])
    return EveryLayer(), (torch.randn(5, 3, 9, 9), words)


class Denoiser(nn.Module):
    """A very small text-conditioned U-Net, of whose mean square error per example the gradient is taken."""

    def __init__(self) -> None:
        super().__init__()
        kinds = {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        }
        sizes = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
        self.unet = UNet2DConditionModel(
            in_channels=2, out_channels=2, cross_attention_dim=6, attention_head_dim=2, **sizes, **kinds
        )

    def forward(self, samples, times, contexts, targets):
        found = self.unet(samples, times, contexts).sample
        return (found - targets).square().mean((1, 2, 3))


@pytest.fixture(scope="module")
def denoiser():
    """The module, and its inputs for 4 examples."""
    torch.manual_seed(2)
    shape = (4, 2, 8, 8)
    inputs = (torch.randn(shape), torch.tensor([1, 50, 300, 900]), torch.randn(4, 3, 6), torch.randn(shape))
    return Denoiser(), inputs


def one_by_one(module, losses, clip):
    """Norms [N], and the clipped sums, by one backward pass per example."""
    trained = [each for each in module.parameters() if each.requires_grad]
    norms, sums = [], [torch.zeros_like(each) for each in trained]
    for loss in losses:
        found = torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
        found = [torch.zeros_like(p) if g is None else g for g, p in zip(found, trained, strict=True)]
        norms.append(torch.cat([g.flatten() for g in found]).norm())
        for total, g in zip(sums, found, strict=True):
            total += g * min(1.0, clip / float(norms[-1]))
    return torch.stack(norms), sums


def ours(module, count, losses, clip, draws=1):
    """Norms [N], and the clipped sums in the order of module.parameters()."""
    sums = ClippedSums(module, clip, draws)
    norms = sums.norms(count, losses)
    sums.add(count, losses)
    return norms, [sums.sums[each] for each in module.parameters() if each.requires_grad]


def assert_close(found, wanted):
    """Norms within 1e-5 of themselves, sums within 1e-5 of each tensor's norm."""
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-5, atol=0)
    assert len(found[1]) == len(wanted[1])
    for one, other in zip(found[1], wanted[1], strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm() + 1e-9


@pytest.mark.parametrize("part", ["every layer", "attention", "all"])
def test_norms_and_sums_are_those_of_opacus_and_of_single_passes(part, every_layer, denoiser):
    module, inputs = every_layer if part == "every layer" else denoiser
    if part != "every layer":
        train_only(module, part)
    losses = module(*inputs)
    norms, _ = one_by_one(module, losses, 1.0)
    clip = float(norms.median())  # so that some are clipped and some are not
    assert (norms > clip).any() and (norms < clip).any()
    found = ours(module, len(inputs[0]), lambda: module(*inputs), clip)
    assert_close(found, one_by_one(module, losses, clip))

    hooked = GradSampleModule(copy.deepcopy(module), loss_reduction="sum")
    hooked(*inputs).sum().backward()
    each = [p.grad_sample for p in hooked.parameters() if p.requires_grad]
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in each]).norm(dim=0)
    factors = (clip / norms).clamp(max=1)
    assert_close(found, (norms, [torch.einsum("n,n...->...", factors, g) for g in each]))

    ghost = GradSampleModuleFastGradientClipping(copy.deepcopy(module), max_grad_norm=clip, loss_reduction="sum")
    losses = ghost(*inputs)
    losses.sum().backward(retain_graph=True)
    norms, factors = ghost.get_norm_sample(), (clip / ghost.get_norm_sample()).clamp(max=1)
    ghost.disable_hooks()
    ghost.zero_grad()
    (losses * factors).sum().backward()
    assert_close(found, (norms, [p.grad for p in ghost.parameters() if p.requires_grad]))


@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.integers(1, 3),
    padding=st.sampled_from([0, 1, (2, 1), "same"]),
    mode=st.sampled_from(["zeros", "circular", "reflect"]),
    dilation=st.integers(1, 2),
    tokens=st.integers(1, 12),
    width=st.sampled_from([2, 30]),
    frozen=st.lists(st.booleans(), min_size=11, max_size=11),
    draws=st.integers(1, 3),
)
def test_any_shape_and_any_frozen_part(kernel, stride, padding, mode, dilation, tokens, width, frozen, draws):
    torch.manual_seed(3)
    stride = 1 if padding == "same" else stride
    shape = {"stride": stride, "padding": padding, "padding_mode": mode, "dilation": dilation}
    conv = nn.Conv2d(2, 4, kernel, **shape)
    layers = (conv, nn.GroupNorm(2, 4), nn.Embedding(5, width), nn.LayerNorm((tokens, width)), nn.Linear(width, 3))
    module = nn.ModuleList((*layers, nn.Linear(7, 1)))
    for parameter, keep in zip(module.parameters(), frozen, strict=True):
        parameter.requires_grad_(not keep)
    pictures, words, plain = (
        torch.randn(3 * draws, 2, 9, 8),
        torch.randint(5, (3 * draws, tokens)),
        torch.ones(3 * draws, 7),
    )

    def losses():
        conv, groups, embedding, norm, linear, head = module
        seen = torch.tanh(groups(conv(pictures))).square().mean((1, 2, 3))
        said = torch.tanh(linear(norm(embedding(words)))).square().mean((1, 2))
        return seen * said + seen + torch.sin(said) + head(plain)[:, 0]

    if all(frozen):
        with pytest.raises(CipherDMError, match="No parameter of the module is trainable"):
            ClippedSums(module, 0.1, draws)
        return
    wanted = one_by_one(module, losses().unflatten(0, (3, draws)).mean(1), 0.1)
    found = ours(module, 3, losses, 0.1, draws)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-4, atol=1e-6)
    for one, other in zip(found[1], wanted[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_padding_of_an_embedding_has_no_gradient(every_layer):
    """Which opacus counts in its norms, unlike torch."""
    torch.manual_seed(1)
    module, inputs = EveryLayer(padding=0), every_layer[1]
    losses = module(*inputs)
    assert_close(ours(module, 5, lambda: module(*inputs), 0.3), one_by_one(module, losses, 0.3))


def test_microbatches_add_up_and_nothing_else_is_touched(every_layer):
    module, (pictures, words) = every_layer
    whole, parts = ClippedSums(module, 0.01), ClippedSums(module, 0.01)
    whole.add(5, lambda: module(pictures, words))
    for rows in ([0, 1], [2, 3, 4]):
        parts.add(len(rows), lambda rows=rows: module(pictures[rows], words[rows]))
    for one, other in zip(whole.sums.values(), parts.sums.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)
    assert all(each.grad is None for each in module.parameters())
    assert not any(layer._forward_hooks for layer in module.modules())


def test_an_activation_may_overwrite_a_layers_outputs():
    torch.manual_seed(4)
    apart, over = (nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace), nn.Linear(5, 1)) for inplace in (False, True))
    over.load_state_dict(apart.state_dict())
    found, wanted = (ours(module, 4, lambda m=module: m(torch.eye(4))[:, 0], 0.5) for module in (over, apart))
    assert_close(found, wanted)


def test_inputs_that_are_changed_after_their_layer_are_refused():
    """Torch checks this itself where it forms a weight's gradient, which is nowhere here."""
    module = nn.Sequential(nn.Linear(4, 1))

    def losses():
        inputs = torch.eye(4)
        found = module(inputs)[:, 0]
        inputs.add_(1)
        return found

    with pytest.raises(CipherDMError, match="The inputs of 0 are changed in place"):
        ClippedSums(module, 1.0).add(4, losses)


def test_an_example_that_is_not_finite_counts_as_zero_and_is_not_told(every_layer):
    module, (pictures, words) = every_layer
    broken = pictures.clone()
    broken[1, 0, 0, 0], broken[3, 0, 0, 0] = torch.nan, torch.inf
    kept = [0, 2, 4]
    found, wanted = ClippedSums(module, 0.01), ClippedSums(module, 0.01)
    found.add(5, lambda: module(broken, words))
    wanted.add(3, lambda: module(pictures[kept], words[kept]))
    for one, other in zip(found.sums.values(), wanted.sums.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


def test_tokens_that_cancel_do_not_pass_for_a_small_gradient():
    """Gram matrices would round these gradients' norms to about zero, and the examples would be clipped at nothing."""
    torch.manual_seed(6)
    directions, inputs = torch.randn(8, 40), 1e5 * torch.randn(8, 1, 40)
    turns = torch.stack((directions, -directions + 1e-4 * torch.randn(8, 40)), 1)
    module = nn.Sequential(nn.Linear(40, 40, bias=False))
    for row in range(8):
        sums = ClippedSums(module, 1.0)
        sums.add(1, lambda row=row: (module(inputs[[row]].expand(1, 2, 40)) * turns[[row]]).sum((1, 2)))
        true = (turns[row].double().sum(0)[:, None] * inputs[row].double()).norm()
        assert true > 100
        assert 0 < sums.sums[module[0].weight].norm() <= 1.001


class Strange(nn.Module):
    """Layers, and what is done with them."""

    def __init__(self, compute, **layers) -> None:
        super().__init__()
        self.compute = compute
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, inputs):
        return self.compute(self, inputs)


def tied():
    one, other = nn.Linear(4, 4), nn.Linear(4, 4)
    other.weight = one.weight
    return nn.Sequential(one, other)


@pytest.mark.parametrize(
    "module, message",
    [
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), r"1 \(BatchNorm1d\) mixes examples"),
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False)), r"1 \(BatchNorm1d\) mixes examples"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), r"0 \(Conv2d\) has groups"),
        (nn.Sequential(nn.ConvTranspose2d(4, 4, 3)), r"0 \(ConvTranspose2d\) has trainable parameters"),
        (Strange(None, scale=nn.Parameter(torch.ones(4))), r"the module \(Strange\) has trainable parameters"),
        (nn.MultiheadAttention(4, 2), r"out_proj \(NonDynamicallyQuantizableLinear\) has trainable"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), "cannot be clipped: freeze it"),
        (nn.Embedding(4, 4, max_norm=1.0), "max_norm"),
        (tied(), r"1 \(Linear\) shares a parameter with 0 \(Linear\)"),
    ],
)
def test_layers_that_cannot_be_clipped_are_refused_by_name(module, message):
    with pytest.raises(CipherDMError, match=message):
        ClippedSums(module, 1.0)


def test_a_frozen_layer_of_any_kind_is_left_out():
    module = nn.Sequential(nn.Conv1d(1, 1, 1).requires_grad_(False), nn.Linear(4, 1))
    sums = ClippedSums(module, 1.0)
    assert list(sums.layers) == ["1"] and sums.parameters == list(module[1].parameters())


def twice(module, inputs):
    return module.layer(torch.tanh(module.layer(inputs)))[:, 0]


def without_gradients(module, inputs):
    with torch.no_grad():
        return module.layer(inputs)[:, 0]


def counting(module, inputs):
    module.seen += inputs.mean()
    return module.layer(inputs)[:, 0]


@pytest.mark.parametrize(
    "compute, message",
    [
        (twice, "layer is called twice"),
        (without_gradients, "layer runs without gradients"),
        (counting, "changes the buffer seen"),
        (
            lambda module, inputs: module.layer(inputs[:1])[:, 0] + inputs[:, 0],
            "One row per loss has to go through layer",
        ),
        (lambda module, inputs: module.layer(inputs), "losses must return draws = 1 losses per example"),
        (lambda module, inputs: module.layer(inputs.repeat(2, 1))[:, 0], "losses must return draws = 1 losses"),
    ],
)
def test_what_would_make_sums_wrong_is_refused_by_name(compute, message):
    module = Strange(compute, layer=nn.Linear(4, 4), other=nn.Linear(4, 4))
    module.register_buffer("seen", torch.zeros(()))
    sums = ClippedSums(module, 1.0)
    with pytest.raises(CipherDMError, match=message):
        sums.add(3, lambda: module(torch.eye(4)[:3]))
    assert not any(total.any() for total in sums.sums.values())
    assert not any(layer._forward_hooks for layer in module.modules())


@pytest.mark.parametrize(
    "compute",
    [
        lambda module, inputs: torch.tanh(module.layer(inputs) - module.layer.bias).mean(1),
        lambda module, inputs: torch.tanh(module.layer(inputs - inputs.mean(0))).mean(1),
        lambda module, inputs: torch.tanh(module.layer(inputs) * module.other(inputs).mean(0)).mean(1),
        lambda module, inputs: torch.tanh(module.words(torch.arange(3))[: len(inputs)] * inputs.mean()).mean(1),
        lambda module, inputs: torch.tanh(module.words(torch.arange(3)) + inputs[:, None]).mean((1, 2)),
    ],
    ids=[
        "parameter outside its layer",
        "inputs mixed",
        "outputs mixed",
        "factors mixed",
        "positions taken for examples",
    ],
)
def test_the_check_finds_what_one_forward_pass_does_not_show(compute):
    torch.manual_seed(5)
    module = Strange(compute, layer=nn.Linear(4, 4), other=nn.Linear(4, 4), words=nn.Embedding(3, 4))
    inputs = torch.randn(3, 4)
    ClippedSums(module, 1.0).add(3, lambda: module(inputs))
    with pytest.raises(CipherDMError, match="cannot be told apart"):
        ClippedSums(module, 1.0).check(3, lambda rows: module(inputs[rows]))


@pytest.mark.parametrize("draws", [1, 2])
def test_the_check_passes_what_is_right(every_layer, draws):
    module, inputs = every_layer
    pictures, words = (each.repeat_interleave(draws, 0).unflatten(0, (-1, draws)) for each in inputs)
    pictures = pictures + torch.randn(pictures.shape)
    sums = ClippedSums(module, 1.0, draws)
    sums.check(3, lambda rows: module(pictures[rows].flatten(0, 1), words[rows].flatten(0, 1)))
    if draws > 1:
        with pytest.raises(CipherDMError, match="draws are not side by side"):
            sums.check(
                3,
                lambda rows: module(
                    pictures[rows].transpose(0, 1).flatten(0, 1), words[rows].transpose(0, 1).flatten(0, 1)
                ),
            )


@pytest.mark.parametrize("clip", [0.0, -1.0, torch.inf, torch.nan])
def test_the_clip_is_a_positive_number(clip):
    with pytest.raises(CipherDMError, match="clip must be"):
        ClippedSums(nn.Linear(1, 1), clip)
