"""Networks between the parties: a model of the time that a run takes over one, and links slowed down to one."""

from .latency import Latency, count_path_bytes, count_rounds, latency
from .networks import CHEETAH_LAN, LAN, NARROW, NETWORKS, SPU_WAN, WAN, Network, network_named
from .sampling import StepCost, cost_of, step_costs
from .shaping import LinkShaper
