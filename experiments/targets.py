"""The targets: each table and figure of the project, with its commands and the numbers that should come out.

Expected values are those of the committed records, rounded. Bytes, messages and rounds are equal on every machine and for
all data; their tolerances cover rounding and other versions of SPU. Times differ, and their ratios are rough.
"""

from . import (
    activations,
    breakdown_figures,
    captions,
    ddpm1000,
    grid,
    ladder,
    latency,
    linear,
    network,
    operations,
    piecewise,
    prompts,
    quality,
    sd15,
    soak,
    step_gains,
    trajectory_figures,
)

TARGETS = (
    step_gains.STEP,
    activations.TARGET,
    breakdown_figures.TARGET,
    quality.QUALITY,
    quality.SAMPLERS_TARGET,
    ddpm1000.TARGET,
    prompts.TARGET,
    grid.TARGET,
    captions.TARGET,
    step_gains.PROMPT_STEP,
    sd15.TARGET,
    linear.TARGET,
    step_gains.RINGS,
    ladder.TARGET,
    quality.PICTURE,
    trajectory_figures.TARGET,
    latency.TARGET,
    network.TARGET,
    operations.TARGET,
    piecewise.TARGET,
    soak.TARGET,
)
