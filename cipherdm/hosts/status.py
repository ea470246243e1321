"""Text of `cipherdm status`: a row per party, the models, and what is not as it should be."""

from collections.abc import Sequence

from ..errors import CipherDMError
from ..progress import duration
from . import host_pb2 as pb
from .refusals import MOST_REASON, shown


def report(states: Sequence[tuple[pb.Description, pb.HostStatus] | CipherDMError]) -> tuple[str, bool]:
    """Return the text for the three parties' states, by rank, and whether all answer and agree."""
    row = "{:<6} {:<9} {:<7} {:<17} {:<11} {:<8} {:<6} {:<7} {}".format
    lines = [row("party", "cipherdm", "spu", "configuration", "up", "in hand", "done", "failed", "memory")]
    problems, answered = [], []
    for rank, state in enumerate(states):
        if isinstance(state, CipherDMError):
            lines.append(f"{rank:<6} {state}")
            problems.append(f"party {rank} does not answer.")
            continue
        answered.append(state)
        party, status = state
        memory = status.memory_bytes + sum(process.memory_bytes for process in status.processes)
        versions = party.cipherdm_version, party.spu_version, party.configuration
        counts = status.requests, status.done, status.failed
        lines.append(row(party.rank, *versions, duration(status.uptime_seconds), *counts, f"{memory / 2**20:.0f} MiB"))
    if len({(party.cipherdm_version, party.spu_version, party.configuration) for party, _ in answered}) > 1:
        problems.append("versions or configurations differ; nothing runs until they agree.")
    lines += ["", *_models([party for party, _ in answered], problems)]
    for party, status in answered:
        if status.last_error:
            error = shown(status.last_error, MOST_REASON)
            lines.append(f"Last error of party {party.rank}, {status.last_error_time}: {error}")
        lines += [f"Soon at party {party.rank}: {shown(warning, MOST_REASON)}" for warning in status.warnings]
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
