"""Reading and writing U-Nets in diffusers folders."""

import json
import re
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save_file

from ..errors import CipherDMError, refuse
from ..files import data, replacing
from .config import Config, DiTConfig, UNetConditionConfig, UNetConfig
from .control import ControlledConfig, ControlNetConfig, control_params, with_control
from .dit import POSITIONS, positions
from .layout import unet_shapes
from .unet import UNet

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
VARIANTS = ("", ".fp16", ".bf16")  # what names of files have before their suffix; the first that is there is read
SCHEDULER = "scheduler_config.json"
SAMPLING = "sampling.json"  # in a model's folder, if it is to be sampled otherwise than others are
PIPELINE = "model_index.json"  # in a pipeline's folder, which holds the U-Net's folder and others
CONFIGS = {config._kind: config for config in (UNetConfig, UNetConditionConfig, DiTConfig)}
# diffusers' pipelines that are computed here: of a UNet2DModel, and of a UNet2DConditionModel, alone or with a ControlNet.
_PLAIN = ("DDPMPipeline", "DDIMPipeline", "ConsistencyModelPipeline")
_CONTROLLED = "StableDiffusionControlNetPipeline"
_OF_SPLIT = "split_activation"  # field that only the configuration of a `split.SplitControlNetModel` has
_PROMPTED = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", _CONTROLLED)

# In FM64 with 18 fraction bits a product is right below 2^26 and can be silently wrong above. A weight of 2^13 leaves 2^13
# to the other factor. A network with larger weights is broken, or needs rescaling before it is shared.
MAX_WEIGHT = 2.0**13

# Names that diffusers gave to the parts of an attention layer up to 2023, and still reads.
_FORMER_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_SHOWN = 3  # tensors that an error message names


def find_model(name: str | Path) -> Path:
    """Return the folder of a model: a path to one, or a name in `data/models`.

    Raises CipherDMError if there is neither; the message lists the names.
    """
    if Path(name).is_dir():
        return Path(name)
    models = data() / "models"
    known = {path.parent.name for file in (CONFIG, PIPELINE) for path in models.glob(f"*/{file}")}
    if str(name) in known:
        return models / name
    if Path(name).is_file() or len(Path(name).parts) > 1:
        return existing_folder(name)
    names = ", ".join(sorted(known))
    raise CipherDMError(f"There is no model {str(name)!r}: give a diffusers folder, or one of data/models: {names}.")


def existing_folder(path: str | Path) -> Path:
    """Return a path if it is that of a folder. Raises CipherDMError, with what else it may be, if it is not."""
    folder = Path(path)
    if folder.is_file():
        raise CipherDMError(
            f"{folder} is a file. Give a folder: `cipherdm convert {folder} FOLDER` writes one of a single file."
        )
    if not folder.is_dir():
        hint = " A model of this name on the Hugging Face hub is downloaded by huggingface_hub.snapshot_download."
        raise CipherDMError(
            f"There is no folder {folder}. Give the folder that diffusers' save_pretrained wrote."
            + hint * bool(re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)))
        )
    return folder


HOW_TO_SAVE = (
    "`cipherdm convert` writes a folder with safetensors, as save_pretrained(folder, safe_serialization=True) does."
)


def takes_prompts(folder: str | Path) -> bool:
    """Return True for the folder of a Stable Diffusion pipeline, and False for that of a UNet2DModel or its pipeline.

    Raises CipherDMError if the folder is that of another pipeline.
    """
    kind = _components(folder).get("_class_name")
    if kind not in (*_PLAIN, *_PROMPTED):
        raise CipherDMError(f"{folder} is of a {kind}; supported are {', '.join((*_PLAIN, *_PROMPTED))}.")
    return kind in _PROMPTED


def has_control(folder: str | Path) -> bool:
    """Return whether a folder is that of a pipeline with a ControlNet.

    Raises CipherDMError if there are several, or it was trained by split learning: its weights would fit, and draw wrongly.
    """
    components = _components(folder)
    if components.get("_class_name") != _CONTROLLED:
        return False
    kind, config = (components.get("controlnet") or [None])[-1], Path(folder) / "controlnet" / CONFIG
    if config.is_file() and _OF_SPLIT in read_json(config):
        raise CipherDMError(
            f"{config.parent}: this ControlNet was trained by split learning, and encodes hints otherwise than a plain one: "
            "`cipherdm.split.load_split_pipeline` loads the folder to draw in plaintext; three parties draw with plain ones."
        )
    if kind != ControlNetConfig._kind:
        raise CipherDMError(f"{folder} has a {kind}; one {ControlNetConfig._kind} is supported, and not several.")
    return True


def _components(folder: str | Path) -> dict[str, Any]:
    """What a folder says of its pipeline; of one without a file the class alone."""
    index = Path(folder) / PIPELINE
    return read_json(index) if index.is_file() else {"_class_name": _PLAIN[0]}


class WeightsFiles(Mapping[str, np.ndarray]):
    """A U-Net's weights in their files, each read on access, as float32 under diffusers' current name."""

    def __init__(self, paths: Iterable[Path]):
        self._names: dict[str, tuple[Path, str]] = {}
        for path in paths:
            with _opened(path) as file:
                self._names |= {_current_name(name): (path, name) for name in file.keys()}  # noqa: SIM118 (no dictionary)

    def __getitem__(self, name: str) -> np.ndarray:
        path, stored = self._names[name]
        with _opened(path) as file:
            return np.asarray(file.get_tensor(stored), np.float32)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def load_unet(folder: str | Path, *, lazily: bool = False) -> UNet:
    """Read a UNet2DModel, UNet2DConditionModel or DiTTransformer2DModel that diffusers saved, all tensors as float32.

    If the pipeline has a ControlNet, it is part of the model. Weights may be in one file or in several that an index names,
    and of the variant fp16 or bf16, if there is no other.

    Args:
        folder: path of a model's folder, or of a pipeline's with `unet/` and `scheduler/` in it; or a name in data/models.
        lazily: leave the weights in their file (`WeightsFiles`), for models that are larger than the memory.

    Raises:
        CipherDMError: something is missing, unreadable, of another architecture, not finite, or beyond MAX_WEIGHT; the message
            names the file or tensor.
    """
    folder = find_model(folder)
    takes_prompts(folder)  # a pipeline of another kind would have more to compute than its U-Net
    nested = (folder / "unet").is_dir() and not (folder / CONFIG).is_file()
    home = folder / "unet" if nested else folder
    scheduler = folder / "scheduler" / SCHEDULER if nested else folder / SCHEDULER

    values = read_json(home / CONFIG)
    kind = values.get("_class_name") or (values.get("architectures") or ["UNet2DModel"])[0]
    if kind not in CONFIGS:
        supported = " and ".join(CONFIGS)
        remedy = " load_transformer reads transformers' models." * ("_class_name" not in values)
        raise CipherDMError(f"{home / CONFIG}: The configuration is of a {kind}; supported are {supported}.{remedy}")
    config, weights = _read(home, CONFIGS[kind], values), weights_in(home, WEIGHTS)
    params = weights if lazily else dict(weights)
    if isinstance(config, DiTConfig):  # diffusers computes these when it makes the model
        table = positions(config.width, config.sample_size // config.patch_size)
        params = {POSITIONS: table} | dict(weights)
    check_params(config, params, str(home / WEIGHTS))
    if has_control(folder):
        config, added = _with_control(config, folder / "controlnet")
        params = ChainMap(added, weights) if lazily else params | added
    return UNet(config, params, read_json(scheduler) if scheduler.is_file() else None, folder)


def _with_control(config: UNetConditionConfig, home: Path) -> tuple[Config, dict[str, np.ndarray]]:
    """Return the configuration of a U-Net with the ControlNet in a folder, and what this adds to the state dict."""
    control = _read(home, ControlNetConfig, read_json(home / CONFIG))
    weights = dict(weights_in(home, WEIGHTS))
    check_params(replace(control, hide_prompt=False), weights, str(home / WEIGHTS))
    try:
        return with_control(config, control), control_params(control, weights)
    except CipherDMError as error:
        raise CipherDMError(f"{home}: {error}") from error


def _read(home: Path, kind: type[Config], values: Mapping[str, Any]) -> Config:
    try:
        return kind.from_diffusers(values)
    except CipherDMError as error:
        raise CipherDMError(f"{home / CONFIG}: {error}") from error


def sampling_defaults(folder: Path | None, *, steps: int = 20, guidance_scale: float = 7.5) -> dict[str, Any]:
    """Return with how many "steps" and which "guidance_scale" a model is sampled if nothing else is asked for.

    These are the given ones, unless its folder's `sampling.json` says others, as the folders of few-step models do. Raises
    CipherDMError if that says something else.
    """
    usual = {"steps": steps, "guidance_scale": guidance_scale}
    if folder is None or not (folder / SAMPLING).is_file():
        return usual
    found = read_json(folder / SAMPLING)
    wrong = [name for name, value in found.items() if name not in usual or not isinstance(value, int | float)]
    if wrong:
        raise CipherDMError(f"{folder / SAMPLING}: it may give numbers for {' and '.join(usual)}, not {first(wrong)}.")
    return usual | found


def save_unet(unet: UNet, folder: str | Path) -> None:
    """Write `unet`, and its scheduler if it has one, so that diffusers loads them with from_pretrained.

    Each file appears whole or not at all. Raises CipherDMError if the weights do not fit the configuration, are not finite or
    beyond MAX_WEIGHT, or the folder cannot be written.
    """
    folder = Path(folder)
    params = {name: np.ascontiguousarray(value, np.float32) for name, value in unet.params.items()}
    how = "StableDiffusionControlNetPipeline.save_pretrained, in two folders"
    refuse({f"a U-Net with a ControlNet is saved by {how}": isinstance(unet.config, ControlledConfig)})
    check_params(unet.config, params, "the U-Net to be saved")
    params.pop(POSITIONS, None)
    try:
        with replacing(folder / WEIGHTS) as temporary:
            save_file(params, temporary, metadata={"format": "pt"})  # diffusers refuses files that do not say so
        _write_json(folder / CONFIG, unet.config.to_diffusers())
        if unet.scheduler_config is not None:
            _write_json(folder / SCHEDULER, dict(unet.scheduler_config))
    except OSError as error:
        raise CipherDMError(f"Cannot write a U-Net to {folder}: {error.strerror or error}.") from error


def check_params(config: Config, params: Mapping[str, np.ndarray], where: str) -> None:
    """Raise CipherDMError unless `params` fit `config`, are finite, and within MAX_WEIGHT.

    `where` tells in messages where the parameters come from.
    """
    if any("lora_" in name or ".base_layer." in name for name in params):
        raise CipherDMError(
            f"{where} holds a LoRA beside the weights: pipe.fuse_lora(); pipe.unload_lora_weights(), then save."
        )
    check_shapes(unet_shapes(config), params, where)


def check_shapes(expected: Mapping[str, tuple[int, ...]], params: Mapping[str, np.ndarray], where: str) -> None:
    """Raise CipherDMError unless `params` have these names and shapes, are finite, and within MAX_WEIGHT; as `check_params`."""
    problems = [f"{name} is missing" for name in expected if name not in params]
    problems += [
        f"{name} has shape {list(params[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in params and params[name].shape != shape
    ]
    problems += [f"{name} is not expected" for name in params if name not in expected]
    if problems:
        raise CipherDMError(
            f"{where}: a checkpoint of another architecture than its {CONFIG} describes: {first(problems)}."
        )
    largest = {name: np.abs(value).max() for name, value in params.items()}
    broken = [name for name, size in largest.items() if not np.isfinite(size)]
    if broken:
        raise CipherDMError(f"{where}: values that are not finite in {first(broken)}. Was training stopped in time?")
    large = [f"{name} (up to {size:.6g})" for name, size in largest.items() if size > MAX_WEIGHT]
    if large:
        raise CipherDMError(
            f"{where}: weights beyond {MAX_WEIGHT:g}, in {first(large)}. In 64-bit fixed point with 18 fraction bits "
            "products can be wrong from 2^26 on, so such weights cannot be used. Rescale the layers or retrain."
        )


def weights_in(home: Path, name: str) -> WeightsFiles:
    """Return the weights in a model's folder, in the file of this name, a variant of it, or several that an index names.

    Raises CipherDMError if there is none of them.
    """
    stem, suffix = name.rsplit(".", 1)
    for variant in VARIANTS:
        if (whole := home / f"{stem}{variant}.{suffix}").is_file():
            return WeightsFiles([whole])
        if (index := home / f"{name}.index{variant}.json").is_file():
            places = read_json(index).get("weight_map")
            if not isinstance(places, dict) or any(Path(str(place)).name != place for place in places.values()):
                raise CipherDMError(f"{index} names no files of weights beside it. Copy it again from its source.")
            return WeightsFiles(home / place for place in sorted(set(places.values())))
    return WeightsFiles([home / name])  # which is then said to be missing


@contextmanager
def _opened(path: Path) -> Iterator[safetensors.safe_open]:
    """Open a file of weights. Raises CipherDMError if it is missing, or something in it cannot be read."""
    if not path.is_file():
        others = sorted(file.name for file in path.parent.glob(f"{path.name.partition('.')[0]}*"))
        found = f" It holds {first(others)}." if others else ""
        raise CipherDMError(f"There is no {path.name} in {path.parent}.{found} {HOW_TO_SAVE}")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            yield file
    except (safetensors.SafetensorError, OSError, TypeError, ValueError) as error:
        raise CipherDMError(
            f"{path} cannot be read ({error}). If it is truncated or corrupt, copy it again."
        ) from error


def _current_name(name: str) -> str:
    match = re.fullmatch(r"(.*\.attentions\.\d+)\.(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in _FORMER_NAMES:
        return name
    return f"{match[1]}.{_FORMER_NAMES[match[2]]}.{match[3]}"


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file of a model's folder. Raises CipherDMError if it is missing, or holds something else."""
    try:
        contents = json.loads(path.read_text())
    except FileNotFoundError:
        raise CipherDMError(
            f"There is no {path.name} in {path.parent}. Give a folder that diffusers' save_pretrained wrote."
        ) from None
    except (OSError, ValueError) as error:
        raise CipherDMError(f"{path} cannot be read as JSON ({error}). Copy it again from its source.") from error
    if not isinstance(contents, dict):
        raise CipherDMError(f"{path} does not hold a JSON object. Copy it again from its source.")
    return contents


def _write_json(path: Path, contents: Mapping[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(contents, indent=2) + "\n")


def first(items: list[str]) -> str:
    """Join the first few items for a message, with the number of the others."""
    return "; ".join(items[:_SHOWN]) + (f"; and {len(items) - _SHOWN} more" if len(items) > _SHOWN else "")
