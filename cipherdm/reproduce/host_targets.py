"""The target of three hosts that answer many requests."""

from . import figures
from .checks import MemoryGrowth, RightAnswers
from .target import Check, Piece, Target

SOAK = Target(
    "soak",
    "Three hosts answer many requests of several clients",
    "no answer is lost or mixed up, and the memory of the parties' processes does not grow",
    "ours",
    (Piece("soak", ("bench", "soak"), (), ("--requests", "48")),),
    (
        Check("answers that are right", 100, 0, RightAnswers(), 0, unit="%"),
        # 0 is the best that there is, and the tolerance a bound.
        Check("growth of a party's memory", 0, 2, MemoryGrowth(), 5, unit="%"),
    ),
    figures.requests,
)
