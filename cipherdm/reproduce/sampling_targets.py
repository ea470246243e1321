"""The targets of samplings: how good the pictures are, how near to those of plaintext; and one call at full size."""

from . import figures
from .checks import ErrorOfCall, Field, LastMedian, Mean
from .figures import MODELS
from .target import Check, Piece, Target

TINY, TEN = MODELS
_PUBLISHED_SETS = ("cipherdm", "cipherdm-corrected", "puma")
# Accuracy in percent, and how far it may be off with 2,000 pictures and with 200. The further from 100, the more it varies.
_ACCURACIES = (
    (TINY, "direct", 95.6, 1.5, 5),
    (TINY, "cipherdm", 89.6, 3, 8),
    (TINY, "fast", 95.8, 1.5, 5),
    (TEN, "direct", 99.2, 1, 3),
    (TEN, "cipherdm", 90.1, 3, 8),
    (TEN, "fast", 99.2, 1, 3),
)


def quality_piece(model: str, protocols: str, scheduler: str = "ddim", steps: int = 50) -> Piece:
    """One row of the quality table: 2,000 pictures, in the reduced run 200.

    With `fast` and 50 steps of DDIM, 16 are drawn on three parties as well.
    """
    sampler = "" if (scheduler, steps) == ("ddim", 50) else f"_{scheduler.removesuffix('++')}-{steps}"
    chosen = ("--scheduler", scheduler, "--steps", str(steps)) if sampler else ()
    on_shares = protocols == "fast" and not sampler and model in MODELS
    return Piece(
        f"quality_{model}_{protocols}{sampler}",
        ("evaluate", model, "--protocols", protocols, *chosen),
        ("--secure", "16") if on_shares else (),
        ("--count", "200", "--compare", "16"),
    )


def _sampler(scheduler: str, steps: int) -> str:
    """The record of the larger model with exact functions."""
    return quality_piece(TEN, "direct", scheduler, steps).name


_ROWS = (
    *((model, protocols) for model in MODELS for protocols in ("direct", *_PUBLISHED_SETS, "fast")),
    *((f"{model}-quad", "fast") for model in MODELS),
    (TEN, "fast-mixed"),
)

QUALITY = Target(
    "quality",
    "Quality of samples under each set of protocols",
    "an independent re-run of the release has F1 0.8575 in plaintext and 0.0820 under CipherDM; ours keeps the quality",
    "published",
    (
        *(quality_piece(model, protocols) for model, protocols in _ROWS),
        *(
            quality_piece(model, protocols, "ddpm", 20)
            for model, protocols in _ROWS
            if not model.endswith("-quad") and protocols != "fast-mixed"
        ),
    ),
    (
        *(
            Check(
                f"{model}: accuracy, {protocols}",
                expected,
                tolerance,
                Field(f"quality_{model}_{protocols}", "accuracy", factor=100),
                reduced,
                unit="%",
            )
            for model, protocols, expected, tolerance, reduced in _ACCURACIES
        ),
        Check(
            f"{TEN}: PSNR of fast to exact", 32.9, 2, Field(f"quality_{TEN}_fast", "psnr", "emulated"), 4, unit=" dB"
        ),
    ),
    figures.quality,
)

_SAMPLERS = (
    *(("ddim", steps) for steps in (5, 10, 20)),
    *(("dpmsolver++", steps) for steps in (5, 10, 15, 20)),
    *(("ddpm", steps) for steps in (5, 10)),  # DDPM with 20 is a row of the target above, DDIM with 50 another
)

SAMPLERS = Target(
    "samplers",
    "Quality over the number of steps, by sampler, with exact functions",
    "DPM-Solver++ with 10 to 15 steps gives what DDIM gives with 50",
    "ours",
    tuple(quality_piece(TEN, "direct", scheduler, steps) for scheduler, steps in _SAMPLERS),
    (
        *(
            Check(
                f"LeNet-FID, {name}-{steps}",
                expected,
                tolerance,
                Field(_sampler(scheduler, steps), "lenet_fid"),
                None,
                2,
            )
            for name, scheduler, steps, expected, tolerance in (
                ("DDIM", "ddim", 10, 1.27, 0.3),
                ("DPM-Solver++", "dpmsolver++", 10, 0.77, 0.2),
                ("DPM-Solver++", "dpmsolver++", 15, 0.68, 0.2),
                ("DDIM", "ddim", 50, 0.71, 0.2),
            )
        ),
        Check(
            "accuracy, DPM-Solver++-10",
            99.1,
            1,
            Field(_sampler("dpmsolver++", 10), "accuracy", factor=100),
            3,
            unit="%",
        ),
    ),
    figures.samplers,
)

PICTURE = Target(
    "sample",
    "Ten digits, secure beside plaintext",
    "secure sampling gives the pictures that plaintext sampling gives",
    "ours",
    (
        Piece(
            "sample",
            ("sample", "--model", TEN, "--granularity", "loop"),
            ("--labels", "0-9", "--steps", "20"),
            ("--labels", "3", "--steps", "4"),
            option="--out",
        ),
    ),
    (Check("mean PSNR to plaintext", 33.0, 2, Mean("sample", "psnr_db"), unit=" dB"),),
)

TRAJECTORY = Target(
    "trajectory",
    "Sampling step by step, on three parties",
    "what the secure samples differ by comes from the replaced functions; computing on shares alone stays near 60 dB",
    "ours",
    tuple(
        Piece(
            f"trajectory_{model}_{scheduler}",
            ("bench", "trajectory", model, "--scheduler", scheduler),
            ("--steps", str(steps), "--batch", str(batch)),
            ("--steps", "4", "--batch", "1"),
        )
        for model, scheduler, steps, batch in ((TINY, "ddim", 20, 4), (TEN, "ddim", 20, 10), (TEN, "ddpm", 50, 5))
    ),
    tuple(
        check
        for model, scheduler, expected in ((TINY, "ddim", 33.7), (TEN, "ddim", 32.6), (TEN, "ddpm", 31.8))
        for check in (
            Check(
                f"{model}, {scheduler}: median PSNR to plaintext",
                expected,
                2,
                LastMedian(f"trajectory_{model}_{scheduler}"),
                unit=" dB",
            ),
            Check(
                f"{model}, {scheduler}: median PSNR to plaintext with the same functions",
                50,
                0,
                LastMedian(f"trajectory_{model}_{scheduler}", "secure_to_emulated"),
                unit=" dB",
                bound="least",
            ),
        )
    ),
    figures.trajectories,
)

DDPM = Target(
    "ddpm-1000",
    "The whole DDPM schedule of 1000 steps under fast",
    "a full DDPM run on shares gives the plaintext pictures, in the time of 1000 steps",
    "ours",
    (
        Piece(
            f"ddpm1000_{TINY}",
            ("bench", "segments", TINY, "--scheduler", "ddpm"),
            ("--steps", "1000", "--segment", "50"),
            ("--steps", "20", "--segment", "10"),
            resumes=True,
        ),
    ),
    (
        Check("mean PSNR to plaintext", 26.9, 5, Mean(f"ddpm1000_{TINY}", "psnr_db"), 5, unit=" dB"),
        Check("GB of all parties", 50.7, 0.2, Field(f"ddpm1000_{TINY}", "bytes", factor=1e-9), unit=" GB"),
    ),
    figures.long_run,
)

FULL_CALL = Target(
    "sd15-step",
    "One U-Net call of Stable Diffusion 1.5's size, block by block",
    "parties compute with weights whose shares do not fit into memory, one block after the other",
    "ours",
    (Piece("sd15_step", ("bench", "full-call"), (), ("--reduced",), resumes=True),),
    (
        Check("error against diffusers, of the rms", 0.1, 0, ErrorOfCall("sd15_step"), 0, 3, bound="most"),
        Check("GB of all parties", 46.7, 0.5, Field("sd15_step", "bytes", factor=1e-9), unit=" GB"),
    ),
    figures.full_call,
)
