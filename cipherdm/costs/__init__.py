"""Networks between the parties: a model of the time that a run takes over one, and links slowed down to one."""

from .latency import Latency as Latency
from .latency import count_path_bytes as count_path_bytes
from .latency import count_rounds as count_rounds
from .latency import latency as latency
from .networks import CHEETAH_LAN as CHEETAH_LAN
from .networks import LAN as LAN
from .networks import NARROW as NARROW
from .networks import NETWORKS as NETWORKS
from .networks import SPU_WAN as SPU_WAN
from .networks import WAN as WAN
from .networks import Network as Network
from .networks import network_named as network_named
from .sampling import StepCost as StepCost
from .sampling import cost_of as cost_of
from .sampling import step_costs as step_costs
from .shaping import LinkShaper as LinkShaper
