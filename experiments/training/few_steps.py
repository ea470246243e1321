"""Training few-step students: networks that draw in one, two or four calls what their teacher draws in twenty or forty.

A student takes the teacher's noise for its first sample at the timestep `start - 1`, much later than the teacher's first: there
one step multiplies the network's output by less, so there is less to learn, and less of a fixed-point error comes through. It
learns to land on the teacher's own samples (progressive distillation, Salimans and Ho, arXiv 2202.00512, in stretches of any
length), then on the teacher's picture through all of its calls, then, where a recipe asks, also on the distribution of the
teacher's pictures (distribution matching, Yin et al., arXiv 2311.18828). Guidance is in the teacher's samples, so a student
needs none.

What is left behind is an ordinary diffusers folder: DDIM with `start` training timesteps, spacing "trailing".
"""

import copy
import json
import shutil
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, UNet2DModel
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from cipherdm.errors import CipherDMError
from cipherdm.files import checkout, replacing
from cipherdm.models.checkpoint import SAMPLING
from cipherdm.private.statement import FILE as STATEMENT
from cipherdm.records import write_record
from cipherdm.sampling.pipeline import CAPTIONS, HINTS
from cipherdm.schedules import Schedule, guided_coefficients, make_schedule

from .control.controlled import Controlled
from .control.hints import controlled
from .control.score import HeldOut
from .digits import noise_levels
from .evaluation import diffusers_sampler, evaluate, model_digits
from .export import replacing_files, trained, write_grid
from .glyphs import glyph_digits
from .modules import use_quadratic_activation
from .recipes import NOISE_SCHEDULE
from .run import Objective, OnStep, Run, go_on, loss_summary, one_thread, stop_requested
from .sd_mini.captions import all_captions, balanced_captions
from .sd_mini.pictures import Source
from .sd_mini.reader import agreement, read
from .sd_mini.score import READER, draw, load_pipeline, reader_of
from .sd_mini.text import save_tokenizer, token_ids
from .students import STUDENTS, StudentConfig

_TEACHER = {"name": "dpmsolver++", "steps": 20}  # timesteps 999, 949, ... 49
_DELTA = 0.03  # of the pseudo-Huber loss, sqrt(error^2 + delta^2) - delta
_BATCH_OF_PATHS = 100


class Teacher:
    """A trained model, what it can be asked for, and how its pictures are judged.

    With `pairs` it has a ControlNet, and can be asked for so many pairs of a caption and a hint, the outline of a font's digit.
    """

    def __init__(self, folder: Path, pairs: int = 0):
        self.folder, self.pipeline, self._hints = folder, None, None
        if (folder / "model_index.json").exists():
            self.pipeline = load_pipeline(folder)
            self.unet, captions = self.pipeline.unet, all_captions()
            texts = [caption.text for caption in captions] + [""]
            with torch.no_grad():
                self._prompts = self.pipeline.text_encoder(token_ids(self.pipeline.tokenizer, texts)).last_hidden_state
            self._captions = torch.arange(len(captions))
            if pairs:
                self.unet, generator = Controlled(self.unet, self.pipeline.controlnet), np.random.default_rng(0)
                self._captions = torch.from_numpy(generator.permutation(np.arange(pairs) % len(captions)))
                shown = [captions[row] for row in self._captions]
                self._hints = controlled(Source.of(glyph_digits(10_000)), shown, generator)[1]
            self.conditions = len(self._captions)
        else:
            self.unet = UNet2DModel.from_pretrained(folder, low_cpu_mem_usage=False, local_files_only=True)
            self.conditions = self.unet.config.num_class_embeds
        self.unet = self.unet.float().to(memory_format=torch.channels_last).requires_grad_(False).eval()
        config = self.unet.config
        self.shape = (config.in_channels, config.sample_size, config.sample_size)

    def predict(self, unet: nn.Module, sample: torch.Tensor, timesteps: Any, rows: torch.Tensor) -> torch.Tensor:
        """Call a network of the teacher's kind for conditions `rows` [B]; ~row is the same hint with the empty prompt."""
        sample = sample.contiguous(memory_format=torch.channels_last)
        if self.pipeline is None:
            return unet(sample, timesteps, class_labels=rows).sample
        asked = torch.where(rows < 0, ~rows, rows)
        prompts = self._prompts[torch.where(rows < 0, -1, self._captions[asked])]
        return unet(sample, timesteps, prompts, *(() if self._hints is None else (self._hints[asked],))).sample

    @torch.no_grad()
    def path(self, noise: torch.Tensor, rows: torch.Tensor, schedule: Schedule, guidance: float) -> torch.Tensor:
        """Draw from noise [B, C, H, W], and return the samples before, between and after the steps, [B, steps + 1, C, H, W]."""
        guided = guidance not in (0, 1)
        coefficients = guided_coefficients(schedule.coefficients, guidance) if guided else schedule.coefficients
        outputs_of = [~rows, rows] if guided else [rows]
        samples, before = [noise], [torch.zeros_like(noise)] * (1 + len(outputs_of))
        for timestep, row in zip(schedule.timesteps, coefficients, strict=True):
            outputs = [self.predict(self.unet, samples[-1], int(timestep), given) for given in outputs_of]
            now = [samples[-1], *outputs]
            terms = [*now, torch.zeros_like(noise), *before]  # no fresh noise
            samples.append(sum(float(factor) * term for factor, term in zip(row, terms, strict=True)))
            before = now
        return torch.stack(samples, dim=1)

    def scores(self, unet: nn.Module, config: StudentConfig, picture: Path) -> dict[str, float]:
        """Judge pictures that diffusers draws with a student, from noise unknown to training; leave some as a PNG."""
        if self.pipeline is None:
            digits = tuple(range(self.conditions))
            sampler = diffusers_sampler(unet, steps=config.calls, ddim=config.scheduler())
            write_grid(sampler(np.repeat(digits, 10), 999), picture)
            found = evaluate(sampler, digits, count=config.judged)
            return {"accuracy": found.accuracy, "lenet_fid": found.lenet_fid}
        pipeline, reader, drawing = self.with_student(unet, config), reader_of(self.folder), {"steps": config.calls}
        if self._hints is not None:
            held_out = HeldOut.of(config.judged, reader, every=2)
            drawn = draw(pipeline, held_out.captions, hints=held_out.hints, guidance=1.0, **drawing)
            held_out.sheet(drawn, picture)
            return held_out.score(drawn)
        wanted = balanced_captions(config.judged)
        drawn = draw(pipeline, wanted, guidance=1.0, **drawing)
        write_grid(drawn[:100].numpy(), picture)
        return agreement(read(drawn, reader), wanted)

    def with_student(self, network: nn.Module, config: StudentConfig) -> DiffusionPipeline:
        """Return the teacher's pipeline with a student in its place."""
        own = {"unet": network} if self._hints is None else {"unet": network.unet, "controlnet": network.controlnet}
        parts = dict(self.pipeline.components) | own | {"scheduler": config.scheduler()}
        pipeline = type(self.pipeline)(**parts, requires_safety_checker=False)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def train_student(
    name_or_config: str | StudentConfig,
    out: str | Path | None = None,
    *,
    steps: int | None = None,
    resume: bool = True,
    runs: str | Path = "runs",
    progress: bool = True,
    on_step: OnStep | None = None,
) -> Path:
    """Train a student, and return its folder. Arguments and errors are those of `digits.train`.

    `steps` shortens or lengthens all phases alike. Students of one teacher learn from the same paths, `runs/TEACHER-paths-*`.
    """
    config = STUDENTS.get(name_or_config) if isinstance(name_or_config, str) else name_or_config
    if config is None:
        raise CipherDMError(f"No student {name_or_config!r}. There are: {', '.join(STUDENTS)}.")
    if steps is not None:
        shares = [replace(phase, steps=max(1, round(phase.steps * steps / config.steps))) for phase in config.phases]
        config = replace(config, phases=tuple(shares))
    models = checkout() / "data" / "models"
    out = models / config.name if out is None else Path(out)
    folder = Path(runs) / config.name
    with one_thread(), stop_requested() as stopped:
        teacher = Teacher(trained(config.teacher, runs), config.pairs)
        path = Path(runs) / f"{config.teacher}-paths-{config.paths}-{config.guidance:g}.safetensors"
        data = load_file(path) if path.exists() else _draw_paths(teacher, config, path, progress)
        run = _start(teacher, config, models)
        if resume:
            run.restore(folder)

        def visit(run: Run) -> None:
            unet = run.averaged.module["student"]
            run.scores.append({"step": run.step} | teacher.scores(unet, config, folder / f"drawn-{run.step:06d}.png"))
            _export(run, teacher, config, out)

        settings = {"progress": progress, "every": 250, "visit": visit, "on_step": on_step}
        go_on(run, student_objective(teacher, config, data), folder, stopped, **settings)
    return out


def _teacher_schedule() -> Schedule:
    return make_schedule(NOISE_SCHEDULE | {"timestep_spacing": "trailing"}, **_TEACHER)


def _draw_paths(teacher: Teacher, config: StudentConfig, path: Path, progress: bool) -> dict[str, torch.Tensor]:
    """Draw the teacher's pictures, conditions in turn, and keep all samples on the way."""
    schedule = _teacher_schedule()
    generator = np.random.default_rng((config.seed, 1))
    rows = torch.from_numpy(generator.permutation(np.arange(config.paths) % teacher.conditions))
    parts = []
    with tqdm(total=config.paths, desc=f"paths of {config.teacher}", unit="picture", disable=not progress) as bar:
        for some in rows.split(_BATCH_OF_PATHS):
            noise = torch.from_numpy(generator.standard_normal((len(some), *teacher.shape), dtype=np.float32))
            parts.append(teacher.path(noise, some, schedule, config.guidance))
            bar.update(len(some))
    data = {"rows": rows, "samples": torch.cat(parts)}
    with replacing(path) as temporary:
        save_file(data, temporary)
    return data


def _start(teacher: Teacher, config: StudentConfig, models: Path) -> Run:
    """Return the run at step 0. A phase with `matching` brings a second network, which learns the student's distribution."""
    student = _network(teacher, config)
    parts = {"student": student}
    if any(phase.matching for phase in config.phases):
        parts["matched"] = copy.deepcopy(teacher.unet).requires_grad_(True)
    if config.initial is not None:
        folder = models / config.initial
        folder = folder / "unet" if (folder / "unet").is_dir() else folder
        student.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
    adam = {"betas": (0.9, 0.99), "weight_decay": config.weight_decay}
    return Run(config.name, asdict(config), nn.ModuleDict(parts), partial(torch.optim.AdamW, **adam), config)


def _network(teacher: Teacher, config: StudentConfig) -> nn.Module:
    network = copy.deepcopy(teacher.unet).requires_grad_(True)
    return use_quadratic_activation(network) if config.act_fn == "quad" else network


def student_objective(teacher: Teacher, config: StudentConfig, data: dict[str, torch.Tensor]) -> Objective:
    """Return the losses of the recipe's phases, on the teacher's paths."""
    schedule = make_schedule(dict(config.scheduler().config), "ddim", config.calls)
    rows, samples = data["rows"], data["samples"]
    known = list(_teacher_schedule().timesteps)
    edges = [0, *(known.index(timestep) for timestep in schedule.timesteps[1:]), len(known)]
    samples = samples[:, edges]  # [paths, calls + 1, ...]; pure noise is the first, whatever the first timestep
    steps, images = (torch.from_numpy(rows) for rows in (schedule.coefficients[:, :2], schedule.prediction))
    timesteps = torch.from_numpy(schedule.timesteps)
    # The output that lands on the next sample, and how wide the image is that it implies: without that weight the first
    # stretch drowns the others.
    deviations = []
    for call in range(config.calls):
        output = (samples[:, call + 1] - steps[call, 0] * samples[:, call]) / steps[call, 1]
        deviations.append((images[call, 0] * samples[:, call] + images[call, 1] * output).std())
    weights = images[:, 1] / steps[:, 1] / torch.stack(deviations)

    def wide(row: torch.Tensor) -> torch.Tensor:
        return row[:, None, None, None]

    def norm(error: torch.Tensor, huber: bool) -> torch.Tensor:
        return ((error**2 + _DELTA**2).sqrt() - _DELTA).mean() if huber else error.square().mean()

    def objective(model: nn.ModuleDict, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        phase, _ = config.phase(step)
        generator = np.random.default_rng((config.seed, 2, step))
        chosen = torch.from_numpy(generator.integers(len(rows), size=config.batch))
        asked, student = rows[chosen], model["student"]
        if not phase.whole:
            call = torch.from_numpy(generator.permutation(np.arange(config.batch) % config.calls))
            now, target = samples[chosen, call], samples[chosen, call + 1]
            output = teacher.predict(student, now, timesteps[call], asked)
            error = wide(steps[call, 0]) * now + wide(steps[call, 1]) * output - target
            loss = norm(wide(weights[call]) * error, phase.huber)
            return loss, loss
        drawn = samples[chosen, 0]
        for call in range(config.calls):
            output = teacher.predict(student, drawn, timesteps[call].expand(config.batch), asked)
            drawn = steps[call, 0] * drawn + steps[call, 1] * output
        target = samples[chosen, -1]
        loss = minimised = norm(drawn - target, phase.huber)
        if config.pixels:
            some = config.batch // 4
            decode, factor = teacher.pipeline.vae.decode, teacher.pipeline.vae.config.scaling_factor
            with torch.no_grad():
                wanted = decode(target[:some] / factor).sample
            minimised = minimised + config.pixels * norm(decode(drawn[:some] / factor).sample - wanted, phase.huber)
        if phase.matching:
            minimised = minimised + _matching(teacher, model["matched"], drawn, asked, generator, phase.matching)
        return minimised, loss

    return objective


def _matching(
    teacher: Teacher,
    matched: nn.Module,
    drawn: torch.Tensor,
    rows: torch.Tensor,
    generator: np.random.Generator,
    weight: float,
) -> torch.Tensor:
    """The loss of distribution matching (equations 7 and 8 of arXiv 2311.18828), and that of the network that it needs.

    With noise on the pictures, teacher and `matched` each predict the image. Their difference, over the mean distance of the
    teacher's from the picture, is the gradient; `matched`, meanwhile, learns to denoise the student's pictures.
    """
    timesteps = torch.from_numpy(generator.integers(20, 980, len(drawn)))
    noise = torch.from_numpy(generator.standard_normal(tuple(drawn.shape), dtype=np.float32))
    signal, sigma = (level[timesteps] for level in noise_levels())
    noisy = signal * drawn.detach() + sigma * noise
    output = teacher.predict(matched, noisy, timesteps, rows)
    with torch.no_grad():
        ours, theirs = (
            (noisy - sigma * of) / signal for of in (output, teacher.predict(teacher.unet, noisy, timesteps, rows))
        )
        scale = (drawn - theirs).abs().mean((1, 2, 3), keepdim=True)
        gradient = (ours - theirs) / scale
    return weight * (drawn * gradient).mean() + (output - noise).square().mean()


def _export(run: Run, teacher: Teacher, config: StudentConfig, out: Path) -> None:
    """Write the averaged weights in half precision as a diffusers folder, with a card and the training record."""
    unet = _network(teacher, config)
    unet.load_state_dict(run.averaged.module["student"].state_dict())
    unet = unet.half()
    with replacing_files(out) as temporary:
        if teacher.pipeline is None:
            unet.save_pretrained(temporary)
            config.scheduler().save_config(temporary)
        else:
            teacher.with_student(unet, config).save_pretrained(temporary)
            save_tokenizer(teacher.pipeline.tokenizer, temporary / "tokenizer")
            (temporary / CAPTIONS).write_bytes((teacher.folder / CAPTIONS).read_bytes())
            for kept in (READER, HINTS):
                if (teacher.folder / kept).is_dir():
                    shutil.copytree(teacher.folder / kept, temporary / kept)
            if (teacher.folder / STATEMENT).exists():
                (temporary / STATEMENT).write_bytes((teacher.folder / STATEMENT).read_bytes())
        with replacing(temporary / SAMPLING) as file:
            file.write_text(json.dumps({"steps": config.calls, "guidance_scale": 1.0}, indent=2) + "\n")
        (temporary / "README.md").write_text(_card(run, config))
        digits = {} if teacher.pipeline else {"digits": model_digits(teacher.folder)}
        about = {"config": asdict(config) | digits, **loss_summary(run, 100), "scores": run.scores}
        write_record(temporary / "training.json", about)


def _card(run: Run, config: StudentConfig) -> str:
    guided = f" with guidance {config.guidance:g}" if config.guidance != 1 else ""
    alone = (
        "does not know the quadratic activation, and refuses this folder"
        if config.act_fn == "quad"
        else "has to be told"
    )
    return f"""# {config.name}

Draws in {config.calls} call(s) of the U-Net, without guidance, what [{config.teacher}](../{config.teacher}) draws in
twenty steps.

- **Schedule**: DDIM, spacing "trailing", over the first {config.start} of the teacher's 1000 timesteps: pure noise is taken
  for the sample at timestep {config.start - 1}.
- **Training**: `cipherdm train {config.name}`, {run.step} of {config.steps} steps, each of {config.batch} of {config.paths:,}
  pictures that the teacher drew by DPM-Solver++ in 20 steps{guided}. It began with the weights of
  `{config.initial or config.teacher}`. `training.json` has phases, losses, scores, the machine and the versions.
- **Use**: as its teacher, but with {config.calls} step(s) and without guidance. `sampling.json` says so to this package;
  diffusers {alone}.
"""
