"""Agreement of sd-mini's images with their captions, as a classifier reads them: the record of `cipherdm read-back`."""

from .target import PROMPT_MODEL, Check, Command, Target, field

READ = f"captions_{PROMPT_MODEL}"

TARGET = Target(
    "captions",
    "What is read back from the pictures of captions, in plaintext",
    "the model draws what its prompts say",
    "ours",
    (Command(READ, ("read-back", PROMPT_MODEL), (), ("--count", "100")),),
    tuple(
        Check(what, expected, tolerance, field(READ, name, "drawn", factor=100), reduced, unit="%")
        for what, name, expected, tolerance, reduced in (
            ("digits as their captions say", "digit", 96.8, 2, 6),
            ("colours", "colour", 99.6, 1, 3),
            ("all of a caption but the place", "all", 96.4, 2, 6),
        )
    ),
)
