"""`cipherdm read-back`: what sd-mini draws, read by a classifier."""

from .step import PROMPT_MODEL
from .target import Check, Field, Piece, Target

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
