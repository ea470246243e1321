"""Which parameters of a denoiser see the private data. The others stay as public data left them."""

from collections.abc import Sequence

from torch import nn

from ..errors import CipherDMError

PARTS = {
    "attention": "the transformers of the U-Net",
    "late-attention": "the transformers of the U-Net's up blocks",
    "attn-only": "self-attention and cross-attention in the transformers of the U-Net",
    "all": "the whole U-Net",
}
"""Names of the parts that can be trained, and what a reader is told of them."""


def train_only(module: nn.Module, part: str, also: Sequence[str] = ()) -> float:
    """Set requires_grad of a part's parameters, and of no others; return the share of the parameters that are trained.

    Args:
        module: UNet2DConditionModel of diffusers, or a module that has one.
        part: name in `PARTS`. "attention" is what DP-LDM trains (arXiv 2305.15759): normalisation, projections, self-attention,
            cross-attention and feed-forward of each transformer.
        also: names of further submodules to train whole, such as an embedding of classes.

    Raises:
        CipherDMError: there is no such part, or the module has no such submodule or nothing of that part.
    """
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    if part not in PARTS:
        raise CipherDMError(f"There is no part {part!r} to train: take one of {', '.join(PARTS)}.")
    modules = dict(module.named_modules())
    if missing := [name for name in also if name not in modules]:
        raise CipherDMError(f"The module has no submodule {', '.join(missing)}: take names of named_modules().")
    transformers = tuple(f"{name}." for name, each in modules.items() if isinstance(each, Transformer2DModel))
    among = {"late-attention": ("up_blocks.",), "attn-only": (".attn1.", ".attn2.")}.get(part, ("",))

    def trained(name: str) -> bool:
        return part == "all" or name.startswith(transformers) and any(each in name for each in among)

    chosen = [each for name, each in module.named_parameters() if trained(name)]
    if not chosen:
        raise CipherDMError(f"The module has nothing of {part!r}: take another part, or a UNet2DConditionModel.")
    module.requires_grad_(False)
    for each in (*chosen, *(modules[name] for name in also)):
        each.requires_grad_(True)
    return share(module)


def share(module: nn.Module) -> float:
    """Return the share of a module's parameters that are trained, between 0 and 1."""
    sizes = [(each.numel(), each.requires_grad) for each in module.parameters()]
    return sum(size for size, trained in sizes if trained) / sum(size for size, _ in sizes)
