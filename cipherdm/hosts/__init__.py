"""Three hosts for three organisations: parties as services, roles by certificate, models that owners register, requests.

The names below are imported when they are first used, because a party does without the models and their libraries.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "config": ["CallerConfig", "HostConfig", "Limits", "RoleNames", "Timeouts", "load_caller", "load_host"],
        "loopback": ["LoopbackHosts"],
        "model": ["Model"],
        "remote": ["Answer", "RemoteCluster"],
        "sampling": ["images_of", "sampling_model", "text_to_image_model", "text_to_image_of"],
        "trial_files": ["make_trial"],
    },
)
