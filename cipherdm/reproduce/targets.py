"""The targets: each table and figure of the project, the commands behind it, and what should come out.

Expected values are those of the committed records, rounded. Bytes, messages and rounds are the same on every machine and for
all data; their tolerances cover rounding and other versions of SPU. Times are not, and their ratios are only roughly.
"""

from .cost_targets import BREAKDOWN, FUNCTIONS, LADDER, LATENCY, LINEAR, NETWORK, OPERATIONS, PIECEWISE, RINGS, STEP
from .host_targets import SOAK
from .prompt_targets import PROMPT_TARGETS
from .sampling_targets import DDPM, FULL_CALL, PICTURE, QUALITY, SAMPLERS, TRAJECTORY

TARGETS = (
    STEP, FUNCTIONS, BREAKDOWN, QUALITY, SAMPLERS, DDPM, *PROMPT_TARGETS, FULL_CALL, LINEAR, RINGS, LADDER, PICTURE, TRAJECTORY,
    LATENCY, NETWORK, OPERATIONS, PIECEWISE, SOAK,
)  # fmt: skip
