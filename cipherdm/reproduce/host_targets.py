"""The target of three hosts that answer many requests."""

from . import figures
from .checks import MemoryGrowth, RightAnswers
from .target import Check, Piece, Target

SOAK = Target(
    "soak",
    "Three hosts answer 200 small requests of four clients",
    "no answer is lost or mixed up, and after the first quarter of the requests the parties' memory stays level",
    "ours",
    (Piece("soak", ("bench", "soak"), (), ("--requests", "48")),),
    (
        Check("answers that are right", 100, 0, RightAnswers(), 0, unit="%"),
        Check("growth of a party's memory, second quarter to last", 2, 0, MemoryGrowth(), 3, unit="%", bound="most"),
    ),
    figures.requests,
)
