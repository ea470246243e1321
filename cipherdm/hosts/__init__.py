"""Three hosts for three organisations: parties as services, roles by certificate, models that owners register, requests.

The names below are imported when they are first used, because a party does without the models and their libraries.
"""

from importlib import import_module

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
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
