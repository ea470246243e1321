"""Text of `cipherdm status`: a row per party, the models, and what is not as it should be."""

from collections.abc import Sequence

from ..errors import CipherDMError
from ..progress import duration
from . import host_pb2 as pb

State = tuple[pb.Description, pb.HostStatus] | CipherDMError


def report(states: Sequence[State]) -> tuple[str, bool]:
    """Return the text for the three parties' states, by rank, and whether all answer and agree."""
    lines = [_row("party", "cipherdm", "spu", "configuration", "up", "in hand", "done", "failed", "memory")]
    problems = []
    for rank, state in enumerate(states):
        if isinstance(state, CipherDMError):
            lines.append(f"{rank:<6} {state}")
            problems.append(f"party {rank} does not answer.")
            continue
        description, status = state
        memory = status.memory_bytes + sum(process.memory_bytes for process in status.processes)
        lines.append(
            _row(
                str(description.rank),
                description.cipherdm_version,
                description.spu_version,
                description.configuration,
                duration(status.uptime_seconds),
                str(status.requests),
                str(status.done),
                str(status.failed),
                f"{memory / 2**20:.0f} MiB",
            )
        )
    answered = [state for state in states if not isinstance(state, CipherDMError)]
    if len({(d.cipherdm_version, d.spu_version, d.configuration) for d, _ in answered}) > 1:
        problems.append("versions or configurations differ; nothing runs until they agree.")
    lines += ["", *_models([description for description, _ in answered], problems)]
    for description, status in answered:
        if status.last_error:
            lines.append(f"Last error of party {description.rank}, {status.last_error_time}: {status.last_error}")
    lines += [f"Not well: {problem}" for problem in problems]
    return "\n".join(lines).rstrip(), not problems


def _models(descriptions: Sequence[pb.Description], problems: list[str]) -> list[str]:
    found: dict[str, list[pb.Model]] = {}
    for description in descriptions:
        for model in description.models:
            found.setdefault(model.name, []).append(model)
    for name, models in sorted(found.items()):
        if len(models) < len(descriptions) or len({model.digest for model in models}) > 1:
            problems.append(f"the model {name} is not the same at all parties; its owner registers it again.")
    return [f"Model {name}, of {found[name][-1].owner}" for name in sorted(found)] or ["No models are registered."]


def _row(*cells: str) -> str:
    widths = (6, 9, 7, 17, 11, 8, 6, 7, 9)
    return " ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
