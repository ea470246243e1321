"""`python -m cipherdm.training compare | candidates`: the measurements behind the choices in training."""

import sys

from .measure import compare_candidates, compare_frameworks

_COMMANDS = {
    "compare": (compare_frameworks, "data/measurements/training_step.json"),
    "candidates": (compare_candidates, "data/measurements/mnist10_candidates.json"),
}

if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[1] not in _COMMANDS:
        sys.exit("usage: python -m cipherdm.training compare | candidates [OUT.json]")
    command, path = _COMMANDS[sys.argv[1]]
    command(sys.argv[2] if len(sys.argv) == 3 else path)
