"""Three hosts for three organisations: parties as services, roles by certificate, registered models, requests.

Names are imported when they are first used, because a party does without the models and their libraries.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "certificates": ["Certificates", "make_certificates"],
        "config": ["HostConfig", "Limits", "PARTY_NAMES", "Timeouts", "load_caller", "load_host"],
        "inspection": ["DENIED", "NOT_REACHED", "attempts", "register_unchecked", "table_of_roles", "words_on_disk"],
        "loopback": ["LoopbackHosts", "free_ports"],
        "model": ["Model", "Together"],
        "process": ["command"],
        "remote": ["Answer", "RemoteCluster"],
        "sampling": ["images_of", "sampling_model"],
        "status": ["report"],
        "texts": ["classes_of", "classifying_model"],
        "trial_files": ["make_trial"],
    },
)
