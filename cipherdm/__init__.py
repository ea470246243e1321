"""Secure three-party sampling of diffusion models, to learn from and to reproduce.

The names below are what a notebook needs; each package has more. They are imported when they are first used, because a party's
process needs only SPU and should not wait for PyTorch, which diffusers brings along.
"""

import os

import lazy_loader

# SPU's own OpenSSL would read /tmp/openssl/openssl.cnf, which any user of the machine may make, and load code that it names.
# OpenSSL looks here first. Processes that are started inherit it.
os.environ.setdefault("OPENSSL_CONF", os.devnull)

_MODULES = (
    "approximations calibration costs datasets engine hosts kernels lessons likeness models owner private protocols records "
    "sampling schedules sharing split views"
)
_NAMES = {
    "calibration": "calibrate check_ranges",
    "costs.networks": "CHEETAH_LAN LAN NETWORKS Network SPU_WAN WAN",
    "engine.cluster": "LocalCluster",
    "engine.config": "EngineConfig",
    "engine.costs": "CostReport",
    "errors": "CipherDMError",
    "models.checkpoint": "find_model load_unet save_unet",
    "models.transformer_files": "load_transformer",
    "private.budget": "PrivacyBudget",
    "private.statement": "privacy_of",
    "protocols.sets": (
        "CIPHERDM CIPHERDM_CORRECTED DIRECT DITTO FAST FAST_64 FAST_GUARDED FAST_RINGS MPCFORMER NIMBUS PUMA Protocols"
    ),
    "records": "record",
    "sampling.continuations": "generate",
    "sampling.pipeline": "load_pipeline",
    "sampling.sample": "SamplingResult sample",
    "sampling.secure_pipeline": "SecurePipeline from_diffusers",
    "sampling.text_to_image": "text_to_image",
    "sampling.texts": "classify",
    "views.style": "show",
}

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, _MODULES.split(), {module: names.split() for module, names in _NAMES.items()}
)
