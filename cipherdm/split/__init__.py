"""Training a ControlNet where clients have the pictures and a server has the weights, and what the server learns from it.

Names are imported when they are first used: a process of either side needs few of them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    ["attacks"],
    {
        "call": ["WARNING", "Wire"],
        "client": ["Client", "Examples", "Head", "STRUCTURES", "embedded", "load_base"],
        "config": ["Training", "load_side"],
        "controlnet": ["SplitControlNetModel", "decoded", "encoded", "load_split_pipeline", "mixed"],
        "defences": ["Defences", "phi", "phi_inverse", "published_level"],
        "features": ["Features"],
        "trainer": ["Optimisation", "Trainer", "moving_average"],
        "trial": ["SplitTrial", "make_split_trial"],
    },
)
