"""Configuration of a split training's server and of a client, each read from a TOML file; `trial` writes such files."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ..hosts.certificates import Certificates
from ..hosts.config import Timeouts, certificates_of, split_address, timeouts_of
from ..hosts.toml_fields import Fields, read_sections
from .defences import Defences
from .trainer import Optimisation

SERVER = "server"
"""Common name of the server's certificate."""

STRUCTURES = {
    "published": "features and the U-Net's first convolution go up, and nothing comes back",
    "lean": "the same with noisy latents in place of the convolution",
    "conventional": "clients own the first layers, and wait for their gradients",
}
"""Ways to split the network."""

_DEFENCES = ("activation", "hide-prompts")


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

    def differing(self, theirs: str) -> list[str]:
        """Return the names of the settings that differ from those in a text that `str` has made."""
        try:
            other = json.loads(theirs)
            return [name for name, value in json.loads(str(self)).items() if other.get(name) != value]
        except (ValueError, AttributeError):
            return ["all"]

    def __str__(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class ServerConfig:
    """Configuration of the server.

    Attributes:
        address: `host:port` that it listens at, or `unix:PATH`.
        model: folder of the pipeline that the ControlNet is for.
        state: folder of the checkpoint, and of the ControlNet and the record once it is trained.
        captured: number of batches of each client that are kept in `state`, as material for `attacks`.
    """

    training: Training
    timeouts: Timeouts
    identity: Certificates
    address: str
    model: Path
    state: Path
    optimisation: Optimisation
    captured: int


@dataclass(frozen=True)
class ClientConfig:
    """Configuration of a client.

    Attributes:
        address: `host:port` of the server, or `unix:PATH`.
        model: folder of the pipeline, of which it uses autoencoder, text model, first convolution and schedule.
        data: file of its pictures, see `Examples`.
        record: file for what it measures; a conventional client's layers stand beside it.
        seed: seed of its batches and their noise; None for unpredictable ones.
    """

    training: Training
    timeouts: Timeouts
    identity: Certificates
    address: str
    model: Path
    data: Path
    record: Path
    seed: int | None


def load_server(path: str | Path) -> ServerConfig:
    """Read a server's TOML file: [training], [timeouts], [identity], [server].

    Raises:
        CipherDMError: a field is wrong, missing or unknown, or a file that it names is not there.
    """
    path = Path(path)
    sections = read_sections(path, ("training", "timeouts", "identity", "server"), ("timeouts",))
    training = _training(sections)
    with sections["server"] as server:
        return ServerConfig(
            training,
            timeouts_of(sections),
            certificates_of(sections["identity"], path, name=SERVER),
            _address(server),
            path.parent / server.text("model"),
            path.parent / server.text("state"),
            Optimisation(
                training.steps,
                server.above_zero("learning_rate", Optimisation.learning_rate),
                server.whole("warmup", Optimisation.warmup),
            ),
            server.whole("captured", 0),
        )


def load_client(path: str | Path) -> ClientConfig:
    """Read a client's TOML file: [training], [timeouts], [identity], [client]. Raises CipherDMError as `load_server` does."""
    path = Path(path)
    sections = read_sections(path, ("training", "timeouts", "identity", "client"), ("timeouts",))
    with sections["client"] as client:
        return ClientConfig(
            _training(sections),
            timeouts_of(sections),
            certificates_of(sections["identity"], path),
            _address(client),
            path.parent / client.text("model"),
            path.parent / client.text("data"),
            path.parent / client.text("record"),
            client.whole("seed", None),
        )


def _training(sections: Mapping[str, Fields]) -> Training:
    with sections["training"] as fields:
        structure, defences = fields.text("structure", "published"), fields.texts("defences", _DEFENCES)
        if structure not in STRUCTURES:
            raise fields.error("structure", f"is {structure!r}; there are {', '.join(STRUCTURES)}")
        if unknown := set(defences) - set(_DEFENCES):
            raise fields.error("defences", f"has {min(unknown)!r}; there are {', '.join(_DEFENCES)}")
        clients = fields.texts("clients")
        if not clients or SERVER in clients:
            raise fields.error("clients", f"must name one client or more, and not {SERVER}")
        return Training(
            clients,
            structure,
            fields.whole("batch", Training.batch, least=1),
            fields.whole("steps", Training.steps, least=1),
            Defences("activation" in defences, fields.whole("timesteps_from", 0), "hide-prompts" in defences),
        )


def _address(fields: Fields) -> str:
    address = fields.text("address")
    try:
        if not re.match("unix:.", address):
            split_address(address)
    except ValueError:
        raise fields.error("address", f"is {address!r}, and must be host:port or unix:PATH") from None
    return address
