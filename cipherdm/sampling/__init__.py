"""Schedules, the denoising step, and sampling in plaintext and on shares."""

from .sample import SamplingResult as SamplingResult
from .sample import sample as sample
from .schedules import Schedule as Schedule
from .schedules import make_schedule as make_schedule
