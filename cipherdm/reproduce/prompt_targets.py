"""The targets of sd-mini, which draws what a prompt says: likeness on shares, its settings in plaintext, and what a step costs.

Bounds are those that the project set itself, not what was found.
"""

from . import figures
from .checks import Field, Gain, GridMean, OfRows
from .figures import PROMPT_MODEL
from .target import Check, Piece, Target

DRAWN = f"prompts_{PROMPT_MODEL}"

PROMPTS = Target(
    "prompts",
    "Eight prompts, each drawn by itself on three parties",
    "on shares a prompt gives the picture that it gives in plaintext, in minutes on one machine",
    "ours",
    (Piece(DRAWN, ("bench", "prompts", PROMPT_MODEL), (), ("--count", "1")),),
    (
        Check("mean PSNR to plaintext", 28, 0, OfRows(DRAWN, "psnr_db", "mean"), 0, unit=" dB", bound="least"),
        Check("lowest PSNR to plaintext", 25, 0, OfRows(DRAWN, "psnr_db", "lowest"), 0, unit=" dB", bound="least"),
        Check("GB of all parties, for a picture", 1.04, 0.02, OfRows(DRAWN, "bytes", "mean", 1e-9), 0.02, 2, " GB"),
        Check(
            "minutes of the slowest picture, with sharing",
            10,
            0,
            OfRows(DRAWN, "whole_seconds", "highest", 1 / 60),
            0,
            unit=" min",
            bound="most",
        ),
        Check("most memory of a party", 4, 0, OfRows(DRAWN, "peak_memory", "highest", 2**-30), 0, 2, " GiB", "most"),
    ),
    figures.prompts,
)

GRID = Target(
    "grid",
    "Three prompts under steps, guidance scales and sets of protocols, in plaintext",
    "CipherDM's functions change what a prompt draws; PUMA's and ours hardly do",
    "ours",
    (Piece(f"grid_{PROMPT_MODEL}", ("bench", "grid", PROMPT_MODEL), (), ("--steps", "10", "--guidance-scales", "4")),),
    tuple(
        Check(
            f"mean PSNR of {protocols} to exact, guidance 4, 10 steps",
            expected,
            4,
            GridMean(f"grid_{PROMPT_MODEL}", protocols, 4, 10),
            4,
            unit=" dB",
        )
        for protocols, expected in (("cipherdm", 25.7), ("cipherdm-corrected", 24.4), ("puma", 41.1), ("fast", 45.8))
    ),
    figures.grid,
)

PROMPT_STEP = Target(
    f"step-{PROMPT_MODEL}",
    "One denoising step of a model that takes prompts, with guidance",
    "at least 5 times less time, fewer bytes and fewer messages than direct SPU",
    "ours",
    (
        Piece(
            f"step_{PROMPT_MODEL}",
            ("bench", "step", PROMPT_MODEL, "--batch", "1"),
            ("--repetitions", "3", "--at-once", "3"),
            ("--repetitions", "1", "--at-once", "1"),
        ),
    ),
    (
        Check("bytes, direct / fast", 5, 0, Gain(PROMPT_MODEL, "fast", "bytes"), 0, bound="least"),
        Check("messages, direct / fast", 5, 0, Gain(PROMPT_MODEL, "fast", "sends"), None, bound="least"),
        Check("time, direct / fast", 5, 0, Gain(PROMPT_MODEL, "fast", "time"), None, bound="least"),
    ),
    figures.prompt_gains,
)

READ = f"captions_{PROMPT_MODEL}"

CAPTIONS = Target(
    "captions",
    "What is read back from the pictures of captions, in plaintext",
    "the model draws what its prompts say",
    "ours",
    (Piece(READ, ("read-back", PROMPT_MODEL), (), ("--count", "100")),),
    tuple(
        Check(what, expected, tolerance, Field(READ, name, "drawn", factor=100), reduced, unit="%")
        for what, name, expected, tolerance, reduced in (
            ("digits as their captions say", "digit", 96.8, 2, 6),
            ("colours", "colour", 99.6, 1, 3),
            ("all of a caption but the place", "all", 96.4, 2, 6),
        )
    ),
)

PROMPT_TARGETS = (PROMPTS, GRID, CAPTIONS, PROMPT_STEP)
