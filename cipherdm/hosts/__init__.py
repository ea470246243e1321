"""Three hosts for three organisations: parties as services, roles by certificate, models that owners register, requests.

The names below are imported when they are first used, because a party does without the models and their libraries.
"""

from ..lazy import attach

_HOMES = {
    "Answer": "remote",
    "CallerConfig": "config",
    "HostConfig": "config",
    "Limits": "config",
    "LoopbackHosts": "loopback",
    "Model": "model",
    "RemoteCluster": "remote",
    "RoleNames": "config",
    "Timeouts": "config",
    "images_of": "sampling",
    "load_caller": "config",
    "load_host": "config",
    "make_trial": "trial",
    "sampling_model": "sampling",
    "text_to_image_model": "prompts",
    "text_to_image_of": "prompts",
}
__getattr__, __dir__, __all__ = attach(__name__, _HOMES)
