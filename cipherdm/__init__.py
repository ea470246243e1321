"""Secure three-party sampling of diffusion models, to learn from and to reproduce.

The names below are what a notebook needs; each subpackage has more. They are imported when they are first used, because a
party process needs SPU alone and should not wait for PyTorch, which diffusers brings along.
"""

from .lazy import attach

_HOMES = {
    "CipherDMError": "errors",
    "CHEETAH_LAN": "costs",
    "LAN": "costs",
    "NETWORKS": "costs",
    "Network": "costs",
    "SPU_WAN": "costs",
    "WAN": "costs",
    "CostReport": "engine",
    "EngineConfig": "engine",
    "LocalCluster": "engine",
    "load_pipeline": "sampling.pipeline",
    "load_unet": "models",
    "save_unet": "models",
    "CIPHERDM": "protocols",
    "CIPHERDM_CORRECTED": "protocols",
    "DIRECT": "protocols",
    "FAST": "protocols",
    "FAST_GUARDED": "protocols",
    "FAST_MIXED": "protocols",
    "FAST_SHARES": "protocols",
    "PUMA": "protocols",
    "Protocols": "protocols",
    "SamplingResult": "sampling",
    "TextToImageResult": "sampling.text_to_image",
    "sample": "sampling",
    "text_to_image": "sampling.text_to_image",
}
__getattr__, __dir__, __all__ = attach(__name__, _HOMES)
