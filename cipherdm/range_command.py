"""`cipherdm check-ranges`: a model against the ranges outside which a set's functions are wrong, as a table."""

from collections.abc import Callable, Sequence

from .models import find_model, load_unet
from .models.ranges import LayerRange, check_ranges
from .models.ring_ranges import check_small_ring
from .protocols import named

LEFT = 3  # the exit code that says that a layer left its range; errors have 1, and wrong usage 2


def report(
    model: str,
    protocols: str,
    *,
    steps: int,
    count: int,
    seed: int,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[str, int]:
    """What to print, and the exit code: 0 if every layer stays in its range, LEFT if one leaves it.

    Args:
        model: a name in data/models, or the path of a diffusers folder.
        protocols: a named set. For fast-mixed the products that it computes modulo 2^32 are checked too.
        steps, count, seed, progress: as `check_ranges` has them, `count` being pictures of each class.

    Raises:
        CipherDMError: as `check_ranges` and `check_small_ring`, or there is no such model or set.
    """
    chosen, unet = named(protocols), load_unet(find_model(model))
    settings = {"steps": steps, "per_class": count, "seed": seed, "progress": progress}
    found = check_small_ring(unet, **settings) if chosen.prepare == "fast-mixed" else []
    found += check_ranges(unet, chosen, **settings)
    if not found:
        return f"No function of {chosen.name} is restricted to a range, so nothing can leave one.", 0
    found = sorted(found, key=lambda entry: -entry.outside)
    return f"{table(found)}\n{verdict(found)}", LEFT if any(entry.outside for entry in found) else 0


def table(found: Sequence[LayerRange]) -> str:
    """One line for every layer and function, in the order given; steps are counted from 1."""
    import pandas as pd  # which takes a while, and --help need not wait for it

    rows = [
        {
            "layer": entry.layer,
            "function": entry.function,
            "lowest": entry.lowest,
            "highest": entry.highest,
            "allowed": f"{entry.allowed[0]:.4g} to {entry.allowed[1]:.4g}",
            "outside": f"{100 * entry.outside:.2g}%",
            "worst step": "" if entry.step is None else str(entry.step + 1),
            "beyond by": entry.excess,
        }
        for entry in found
    ]
    return pd.DataFrame(rows).to_string(index=False, float_format="{:.4g}".format)


def verdict(found: Sequence[LayerRange]) -> str:
    """Which layers leave their range, each named once, in the order given."""
    layers = {entry.layer for entry in found}
    leaving = list(dict.fromkeys(entry.layer for entry in found if entry.outside))
    if not leaving:
        return f"All {len(layers)} layers stay in their ranges."
    return f"{len(leaving)} of {len(layers)} layers leave their range: {', '.join(leaving)}."
