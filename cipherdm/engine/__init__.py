"""Engine: three parties that compute on secret shares with SPU, and their client."""

from .cluster import LocalCluster as LocalCluster
from .config import EngineConfig as EngineConfig
from .costs import TOTALS as TOTALS
from .costs import CostReport as CostReport
from .costs import sum_totals as sum_totals
from .graph import Graph as Graph
from .graph import Node as Node
from .graph import compile_plan as compile_plan
from .graph import sizes_met as sizes_met
from .programs import Call as Call
from .programs import Plan as Plan
from .programs import Program as Program
from .programs import Spec as Spec
from .programs import Walking as Walking
from .programs import compile_program as compile_program
from .session import Session as Session
