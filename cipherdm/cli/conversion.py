"""`cipherdm convert`: whatever diffusers reads, as a folder that everything here takes."""

import re
import shutil
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from safetensors import SafetensorError

from ..errors import CipherDMError, refuse
from ..files import check_writable

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, UNet2DConditionModel, UNet2DModel


def convert(
    source: Annotated[Path, typer.Argument(help="Diffusers folder with weights of any kind, or a single file.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    config: Annotated[
        str | None,
        typer.Option(
            help="Diffusers folder whose configurations and tokenizer fit a single file; diffusers asks the hub by default."
        ),
    ] = None,
    lora: Annotated[list[Path] | None, typer.Option(help="LoRA weights to fuse; may be given several times.")] = None,
    lora_scale: Annotated[float, typer.Option(help="Share of each LoRA that is fused.")] = 1.0,
) -> None:
    """Write a checkpoint as a diffusers folder with safetensors, with LoRA weights fused into it.

    It is read by diffusers itself: folders with .bin files, from which nothing but tensors is unpickled; single files of Stable
    Diffusion, .safetensors or .ckpt; LoRA as load_lora_weights takes it. This is done by the model's owner, before anything is
    shared: parties see no difference. A model that is not computed here is refused, and nothing is written.
    """
    if not source.exists():
        raise CipherDMError(f"There is no {source}: give a diffusers folder, or a single file.")
    missing = [str(path) for path in lora or [] if not path.exists()]
    refuse({f"There is no {', '.join(missing)}: give files or folders with LoRA weights": missing})
    refuse({f"{out} exists: give a folder that does not": out.exists()})
    refuse({f"There is no folder {out.parent} to write {out.name} into": not out.parent.is_dir()})
    check_writable(out / "model_index.json")
    from ..models.checkpoint import SAMPLING
    from ..sampling.pipeline import CAPTIONS
    from ..sampling.secure_pipeline import from_diffusers  # which brings PyTorch

    errors = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, EOFError)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        whole = Path(temporary) / out.name
        try:
            model, scheduler = _opened(source, config)
            _fuse(model, lora or [], lora_scale)
        except (*errors, UnpicklingError, SafetensorError) as error:
            raise CipherDMError(f"diffusers does not read {source}: {error}") from error
        from_diffusers(model, scheduler, folder=whole)
        for name in (SAMPLING, CAPTIONS):  # which are ours
            if (source / name).is_file():
                shutil.copy(source / name, whole)
        whole.rename(out)
    typer.echo(f"{out} is a diffusers folder now: `cipherdm inspect {out}`.")


def _opened(source: Path, config: str | None) -> "tuple[DiffusionPipeline | UNet2DModel | UNet2DConditionModel, Any]":
    """A pipeline and None, or a U-Net and its scheduler."""
    import diffusers

    from ..models.checkpoint import CONFIG, PIPELINE, SCHEDULER, VARIANTS, read_json

    if source.is_file():
        options = {} if config is None else {"config": config, "local_files_only": True}
        # A safety checker judges pictures, which nobody but the client has.
        return diffusers.StableDiffusionPipeline.from_single_file(str(source), safety_checker=None, **options), None
    home = source / "unet" if (source / PIPELINE).is_file() else source
    names = " ".join(path.name for path in home.glob("*model*"))
    plain = re.search(r"model(-\d+-of-\d+)?\.(safetensors|bin)", names)
    variant = None if plain else next((kind[1:] for kind in VARIANTS[1:] if f"model{kind}" in names), None)
    options = {"local_files_only": True, "variant": variant}
    if home != source:
        return diffusers.DiffusionPipeline.from_pretrained(source, **options), None
    kind = read_json(source / CONFIG).get("_class_name", _MODELS[0])
    refuse({f"{source} holds a {kind}: give the folder of a UNet2DModel or of a pipeline": kind not in _MODELS})
    levels = source / SCHEDULER
    kept = read_json(levels).get("_class_name", "DDPMScheduler") if levels.is_file() else None
    scheduler = None if kept is None else getattr(diffusers, kept).from_pretrained(source)
    return getattr(diffusers, kind).from_pretrained(source, **options), scheduler


_MODELS = ("UNet2DModel", "UNet2DConditionModel")


def _fuse(model: Any, lora: list[Path], scale: float) -> None:
    """Add each LoRA's product of two small matrices to the weights, as diffusers does it."""
    if lora and not hasattr(model, "load_lora_weights"):
        raise CipherDMError(
            "LoRA weights are fused into a Stable Diffusion pipeline: give its folder, or a single file."
        )
    for path in lora:
        where = {"weight_name": path.name} if path.is_file() else {}
        model.load_lora_weights(path.parent if path.is_file() else path, local_files_only=True, **where)
        refuse({f"{path} has no LoRA weights for this model": not model.get_list_adapters()})
        model.fuse_lora(lora_scale=scale)
        model.unload_lora_weights()
