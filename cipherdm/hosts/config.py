"""What a party's host, and whoever calls it, reads from a TOML file. `trial` writes complete ones."""

# FROM cipherdm.hosts.fields:
# Reading a TOML file field by field, so that every wrong, missing or unknown one is named.

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..engine.config import PARTIES, Certificates
from ..errors import CipherDMError

_Kind = TypeVar("_Kind", str, int, float, list)

_REQUIRED = object()

_KINDS = {str: "a text", int: "a whole number", float: "a number", list: "a list"}


class Fields:
    """The fields of one section of a file. Those that nobody reads are unknown, and `finish` says so.

    Args:
        where: how errors name the section, such as "party.toml, [limits]".
        values: the section as `tomllib` reads it.
    """

    def __init__(self, where: str, values: Mapping[str, Any]):
        self._where, self._values = where, values
        self._read: set[str] = set()

    def text(self, name: str, default: Any = _REQUIRED) -> str:
        """A text that is not empty."""
        value = self._get(name, str, default)
        if value == "":
            raise self.error(name, "is empty")
        return value

    def whole(self, name: str, default: Any = _REQUIRED, *, least: int = 0) -> int:
        """A whole number of at least `least`."""
        value = self._get(name, int, default)
        if value < least:
            raise self.error(name, f"is {value}, and must be at least {least}")
        return value

    def seconds(self, name: str, default: Any = _REQUIRED) -> float:
        """A number of seconds above 0."""
        value = float(self._get(name, float, default))
        if not 0 < value < float("inf"):
            raise self.error(name, f"is {value:g}, and must be a number of seconds above 0")
        return value

    def texts(self, name: str, default: Any = _REQUIRED, *, count: int | None = None) -> tuple[str, ...]:
        """A list of different texts, `count` of them if that is given."""
        values = self._get(name, list, default)
        if not all(isinstance(value, str) and value for value in values):
            raise self.error(name, "must be a list of texts")
        if count is not None and len(values) != count:
            raise self.error(name, f"has {len(values)} entries instead of {count}")
        if len(set(values)) != len(values):
            raise self.error(name, "names something twice")
        return tuple(values)

    def finish(self) -> None:
        """Raise CipherDMError if there are fields that nobody has asked for."""
        unknown = [name for name in self._values if name not in self._read]
        if unknown:
            raise self.error(unknown[0], f"is unknown; there are {', '.join(sorted(self._read))}")

    def error(self, name: str, what: str) -> CipherDMError:
        """The error for a field."""
        return CipherDMError(f"{self._where}: {name} {what}.")

    def _get(self, name: str, kind: type[_Kind], default: Any) -> _Kind:
        self._read.add(name)
        if name not in self._values:
            if default is _REQUIRED:
                raise self.error(name, f"is missing; give {_KINDS[kind]}")
            return default
        value = self._values[name]
        kinds = (int, float) if kind is float else kind
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise self.error(name, f"is {value!r}, and must be {_KINDS[kind]}")
        return value


class TomlFile:
    """A TOML file whose sections are read as `Fields`.

    Raises:
        CipherDMError: there is no such file, or it is not TOML.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._sections = tomllib.loads(path.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise CipherDMError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}.") from None
        except tomllib.TOMLDecodeError as error:
            raise CipherDMError(f"{path} is not TOML: {error}.") from None

    def section(self, name: str, *, required: bool = True) -> Fields:
        """A section; an empty one where it is missing and not `required`."""
        values = self._sections.get(name)
        if values is None and required:
            raise CipherDMError(f"{self.path}: the section [{name}] is missing.")
        if values is not None and not isinstance(values, dict):
            raise CipherDMError(f"{self.path}: {name} must be a section, [{name}].")
        return Fields(f"{self.path}, [{name}]", values or {})

    def check_sections(self, known: tuple[str, ...]) -> None:
        """Raise CipherDMError if there is another section than these."""
        for name in self._sections:
            if name not in known:
                raise CipherDMError(
                    f"{self.path}: the section [{name}] is unknown; there are {', '.join(f'[{k}]' for k in known)}."
                )


_SECTIONS = ("cluster", "timeouts", "limits", "roles", "identity", "party")


@dataclass(frozen=True)
class Timeouts:
    """Seconds after which waiting ends.

    Attributes:
        connect: for a connection, and for an answer to a question that takes no work.
        start: for the three processes of a run to be there and connected.
        receive: for a message of another party within a run.
        upload: for a client's inputs to be there.
        keepalive: between two signs of life on a connection where nothing happens; after twice as many it counts as cut.
    """

    connect: float = 10.0
    start: float = 60.0
    receive: float = 60.0
    upload: float = 120.0
    keepalive: float = 10.0


@dataclass(frozen=True)
class Limits:
    """What callers may take up at one party.

    Attributes:
        runs: runs at a time; each has a process and a port of its own.
        queue: runs that may wait beside those.
        runs_per_client: runs of one client, computing or waiting.
        input_bytes: bytes of shares that one run's inputs may have.
        model_bytes: bytes of shares and programs that one model may have.
        models: models of one owner.
    """

    runs: int = 2
    queue: int = 16
    runs_per_client: int = 4
    input_bytes: int = 64 << 20
    model_bytes: int = 4 << 30
    models: int = 16


@dataclass(frozen=True)
class RoleNames:
    """Who is what, by the common name of their certificates. Parties are party0, party1 and party2."""

    owners: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()


@dataclass(frozen=True)
class CallerConfig:
    """What a model owner, a client or an operator needs to know.

    Attributes:
        parties: `host:port` of the three parties for callers, by rank.
        timeouts: see `Timeouts`.
        identity: what this role presents and trusts.
    """

    parties: tuple[str, str, str]
    timeouts: Timeouts
    identity: Certificates


@dataclass(frozen=True)
class HostConfig:
    """What a party's host needs to know.

    Attributes:
        caller: its own side as a caller of the other two.
        rank: 0, 1 or 2.
        links: `host:port` at which the parties reach each other; the run in slot k uses the port k above.
        link_identity: what the party presents and trusts there. The authority signs for parties alone: SPU accepts any
            certificate of it, whatever the name.
        listen: the address that this host listens at.
        state: the folder of registered models' shares.
        threads: of the processor, for each run.
        limits: see `Limits`.
        roles: see `RoleNames`.
    """

    caller: CallerConfig
    rank: int
    links: tuple[str, str, str]
    link_identity: Certificates
    listen: str
    state: Path
    threads: int
    limits: Limits
    roles: RoleNames

    @property
    def agreement(self) -> str:
        """A hash of all that the three parties must have alike: addresses, timeouts, limits, roles and the ring."""
        common = {
            "parties": self.caller.parties,
            "links": self.links,
            "timeouts": asdict(self.caller.timeouts),
            "limits": asdict(self.limits),
            "roles": asdict(self.roles),
            "protocol": ["ABY3", 64],
        }
        return hashlib.sha256(json.dumps(common, sort_keys=True).encode()).hexdigest()[:16]

    def links_of_slot(self, slot: int) -> tuple[str, str, str]:
        """Where the three parties' processes of a slot reach each other; this one's as it listens."""
        addresses = [split_address(address) for address in self.links]
        hosts = [self.listen if rank == self.rank else host for rank, (host, _) in enumerate(addresses)]
        return tuple(f"{host}:{port + slot}" for host, (_, port) in zip(hosts, addresses, strict=True))


def load_caller(path: str | Path) -> CallerConfig:
    """Read a caller's TOML file: [cluster] parties, [timeouts], [identity]. A party's file serves as well.

    Raises:
        CipherDMError: a field is wrong, missing or unknown, or a file that it names is not there.
    """
    file = TomlFile(Path(path))
    file.check_sections(_SECTIONS)
    cluster = file.section("cluster")
    parties = _addresses(cluster, "parties")
    return CallerConfig(parties, _timeouts(file), _certificates(file.section("identity"), file.path))


def load_host(path: str | Path) -> HostConfig:
    """Read a party's TOML file: all sections.

    Raises:
        CipherDMError: a field is wrong, missing or unknown, or a file that it names is not there.
    """
    file = TomlFile(Path(path))
    file.check_sections(_SECTIONS)
    cluster = file.section("cluster")
    parties, links = _addresses(cluster, "parties"), _addresses(cluster, "links")
    for name, value, supported in (
        ("protocol", cluster.text("protocol", "ABY3"), "ABY3"),
        ("ring_bits", cluster.whole("ring_bits", 64), 64),
    ):
        if value != supported:
            raise cluster.error(name, f"is {value}; only {supported} is supported")
    cluster.finish()
    identity = file.section("identity")
    caller = CallerConfig(parties, _timeouts(file), _certificates(identity, file.path))
    identity.finish()
    party = file.section("party")
    rank = party.whole("rank")
    if rank >= PARTIES:
        raise party.error("rank", f"is {rank}, and must be 0, 1 or 2")
    config = HostConfig(
        caller,
        rank,
        links,
        _certificates(party, file.path, "link_"),
        party.text("listen", split_address(parties[rank])[0]),
        file.path.parent / party.text("state"),
        party.whole("threads", 1, least=1),
        _limits(file),
        _roles(file),
    )
    party.finish()
    _check_ports(cluster, config)
    return config


def split_address(address: str) -> tuple[str, int]:
    """ "host:port" as (host, port). Raises ValueError for anything else."""
    host, colon, port = address.rpartition(":")
    if not host or not colon or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(address)
    return host, int(port)


def _addresses(fields: Fields, name: str) -> tuple[str, str, str]:
    addresses = fields.texts(name, count=PARTIES)
    for address in addresses:
        try:
            split_address(address)
        except ValueError:
            raise fields.error(name, f"has {address!r}, which is not host:port") from None
    return addresses


def _timeouts(file: TomlFile) -> Timeouts:
    fields, usual = file.section("timeouts", required=False), Timeouts()
    timeouts = Timeouts(**{name: fields.seconds(name, value) for name, value in asdict(usual).items()})
    fields.finish()
    return timeouts


def _limits(file: TomlFile) -> Limits:
    fields, usual = file.section("limits", required=False), Limits()
    limits = Limits(
        **{name: fields.whole(name, value, least=0 if name == "queue" else 1) for name, value in asdict(usual).items()}
    )
    fields.finish()
    return limits


def _roles(file: TomlFile) -> RoleNames:
    fields = file.section("roles")
    roles = RoleNames(fields.texts("owners"), fields.texts("clients"), fields.texts("operators", ()))
    for name, members in asdict(roles).items():
        for member in members:
            if member in {f"party{rank}" for rank in range(PARTIES)}:
                raise fields.error(
                    name, f"has {member}: a party has no other role, since it would see more than its share"
                )
    fields.finish()
    return roles


def _certificates(fields: Fields, path: Path, prefix: str = "") -> Certificates:
    paths = {}
    for name in ("certificate", "private_key", "authority"):
        paths[name] = path.parent / fields.text(prefix + name)
        if not paths[name].is_file():
            raise fields.error(prefix + name, f"is {paths[name]}, and there is no such file")
    return Certificates(**paths)


def _check_ports(fields: Fields, config: HostConfig) -> None:
    """Each slot takes a port, so ranges of ports on one address must not overlap."""
    taken: dict[tuple[str, int], str] = {}
    uses = [(f"parties[{rank}]", *split_address(address), 1) for rank, address in enumerate(config.caller.parties)]
    uses += [(f"links[{rank}]", *split_address(a), config.limits.runs) for rank, a in enumerate(config.links)]
    for name, host, first, count in uses:
        if first + count > 65536:
            raise fields.error(
                name, f"is port {first}, and {count} runs at a time need ports up to {first + count - 1}"
            )
        for port in range(first, first + count):
            other = taken.setdefault((host, port), name)
            if other != name:
                raise fields.error(
                    name,
                    f"and {other} both use port {port} on {host}; each run at a time takes a port from the first on",
                )
