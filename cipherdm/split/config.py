"""Configuration of either side of a split training, read from a TOML file; `make_split_trial` writes such files."""

from dataclasses import dataclass
from pathlib import Path

from ..hosts.certificates import Certificates
from ..hosts.config import Timeouts, certificates_of, split_address, timeouts_of
from ..hosts.toml_fields import Fields, read_sections
from .client import STRUCTURES
from .defences import Defences
from .trainer import Optimisation

SERVER = "server"
"""Common name of the server's certificate."""


@dataclass(frozen=True)
class Training:
    """What server and clients must have alike.

    Attributes:
        clients: common names of the clients' certificates; each step mixes one batch of each, in this order.
        structure: one of `STRUCTURES`.
        batch: pictures of one client per step.
        steps: number of steps.
        defences: what clients do to their messages.
    """

    clients: tuple[str, ...]
    structure: str = "published"
    batch: int = 16
    steps: int = 3000
    defences: Defences = Defences()


@dataclass(frozen=True)
class Side:
    """Configuration of the server or of a client.

    Attributes:
        address: `host:port` or `unix:PATH` of the server: where it listens, or is reached.
        model: folder of the pipeline that the ControlNet is for. A client uses all of it but the U-Net's later layers.
        folder: folder for what a side leaves: the server's checkpoint, ControlNet and record, or a client's record.
        optimisation: the server's, of the ControlNet.
        captured: number of batches of each client that the server keeps, as material for `attacks`.
        data: file of a client's pictures, see `Examples`.
        seed: seed of a client's batches and their noise; None for unpredictable ones.
    """

    training: Training
    timeouts: Timeouts
    identity: Certificates
    address: str
    model: Path
    folder: Path
    optimisation: Optimisation | None = None
    captured: int = 0
    data: Path | None = None
    seed: int | None = None


def load_side(path: str | Path, kind: str) -> Side:
    """Read a TOML file: [training], [timeouts], [identity], and [server] or [client] as `kind` says.

    Raises:
        CipherDMError: a field is wrong, missing or unknown, or a file that it names is not there.
    """
    path = Path(path)
    sections = read_sections(path, ("training", "timeouts", "identity", kind), optional=("timeouts",))
    with sections["training"] as fields:
        training = _training(fields)
    identity = certificates_of(sections["identity"], path, name=SERVER if kind == SERVER else None)
    with sections[kind] as own:
        address = own.text("address")
        try:
            if not address.startswith("unix:"):
                split_address(address)
        except ValueError:
            raise own.error("address", f"is {address!r}, and must be host:port or unix:PATH") from None
        folders = (path.parent / own.text(name) for name in ("model", "folder"))
        common = (training, timeouts_of(sections), identity, address, *folders)
        if kind == SERVER:
            rate, warmup = own.above_zero("learning_rate", 1e-3), own.whole("warmup", 50)
            return Side(*common, Optimisation(training.steps, rate, warmup), own.whole("captured", 0))
        return Side(*common, data=path.parent / own.text("data"), seed=own.whole("seed", None))


def _training(fields: Fields) -> Training:
    structure, clients = fields.text("structure", "published"), fields.texts("clients")
    if structure not in STRUCTURES:
        raise fields.error("structure", f"is {structure!r}; there are {', '.join(STRUCTURES)}")
    if not clients or SERVER in clients:
        raise fields.error("clients", f"must name one client or more, and not {SERVER}")
    defences = fields.flag("activation", True), fields.whole("timesteps_from", 0), fields.flag("hide_prompts", True)
    batch, steps = fields.whole("batch", 16, least=1), fields.whole("steps", 3000, least=1)
    return Training(clients, structure, batch, steps, Defences(*defences))
