"""The targets: each table and figure of the project, the commands behind it, and what should come out.

Expected values are those of the committed records, rounded. Bytes, messages and rounds are the same on every machine and for
all data; their tolerances cover rounding and other versions of SPU. Times are not, and their ratios are only roughly.
"""

from .activations import FUNCTIONS
from .breakdown_figures import BREAKDOWN
from .captions import CAPTIONS
from .ddpm1000 import DDPM
from .grid import GRID
from .ladder import LADDER
from .latency import LATENCY
from .linear import LINEAR
from .network import NETWORK
from .operations import OPERATIONS_TARGET
from .piecewise import PIECEWISE
from .prompts import PROMPTS_TARGET
from .quality import PICTURE, QUALITY, SAMPLERS_TARGET
from .sd15 import FULL_CALL
from .soak import SOAK
from .step import PROMPT_STEP, RINGS, STEP
from .trajectory_figures import TRAJECTORY

TARGETS = (
    STEP,
    FUNCTIONS,
    BREAKDOWN,
    QUALITY,
    SAMPLERS_TARGET,
    DDPM,
    PROMPTS_TARGET,
    GRID,
    CAPTIONS,
    PROMPT_STEP,
    FULL_CALL,
    LINEAR,
    RINGS,
    LADDER,
    PICTURE,
    TRAJECTORY,
    LATENCY,
    NETWORK,
    OPERATIONS_TARGET,
    PIECEWISE,
    SOAK,
)
