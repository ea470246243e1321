"""Configuration of a party's host, and of whoever calls it, read from a TOML file; `trial_files` writes complete ones."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ..engine.config import PARTIES
from ..errors import CipherDMError
from .certificates import Certificates
from .gate import Gate
from .toml_fields import Fields, read_sections

PARTY_NAMES = tuple(f"party{rank}" for rank in range(PARTIES))
"""Common names of the parties' certificates, by rank."""

_SECTIONS = ("cluster", "timeouts", "limits", "roles", "identity", "party")


@dataclass(frozen=True)
class Timeouts:
    """Seconds after which waiting ends.

    Attributes:
        connect: limit for a connection, and for an answer that takes no work.
        start: limit until the three processes of a run are there and connected.
        receive: limit for a message of another party within a run.
        upload: limit until an upload is there.
        run: limit for a run, from the moment in which its processes are there.
        keepalive: time between two signs of life on an idle connection; after twice as long it counts as cut.
    """

    connect: float = 10.0
    start: float = 60.0
    receive: float = 60.0
    upload: float = 120.0
    run: float = 3600.0
    keepalive: float = 5.0


@dataclass(frozen=True)
class Limits:
    """Resources of one party that callers may take up.

    Attributes:
        runs: runs at a time; each has a process and a port of its own.
        queue: runs that may wait in addition to those.
        runs_per_client: runs of one client, computing or waiting; fewer than `runs` and `queue` together.
        input_bytes: bytes of shares of one run's inputs.
        model_bytes: bytes of shares and programs of one model.
        models: models of one owner.
        batch_wait: whole seconds that a request waits for others of its model, of any client, to be computed with them in one
            run; 0 to compute each alone. SECURITY.md says what that tells.
    """

    runs: int = 2
    queue: int = 16
    runs_per_client: int = 4
    input_bytes: int = 64 << 20
    model_bytes: int = 4 << 30
    models: int = 16
    batch_wait: int = 0


@dataclass(frozen=True)
class RoleNames:
    """Common names of the certificates of each role. Parties are party0, party1 and party2."""

    owners: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()


@dataclass(frozen=True)
class CallerConfig:
    """Configuration of a model owner, a client or an operator: whom it calls, and the certificate that it presents.

    `parties` has the `host:port` of the three parties for callers, by rank.
    """

    parties: tuple[str, str, str]
    timeouts: Timeouts
    identity: Certificates


@dataclass(frozen=True)
class HostConfig:
    """Configuration of one party's host.

    Attributes:
        caller: its own side as a caller of the other two.
        links: `host:port` at which the parties' gates reach each other; the run in slot k uses the port k above.
        link_identity: certificate and authority for the links. The authority signs for parties alone.
        link_sockets: folder of the sockets of a gate that is not ours, such as haproxy, with a folder `slot0` and so on for
            each slot; None to use the gate of this package.
        listen: address that this host listens at.
        state: folder of the registered models' shares.
        threads: processor threads of each run.
    """

    caller: CallerConfig
    rank: int
    links: tuple[str, str, str]
    link_identity: Certificates
    link_sockets: Path | None
    listen: str
    state: Path
    threads: int
    limits: Limits
    roles: RoleNames

    @property
    def agreement(self) -> str:
        """Hash of all that the three parties must have alike: addresses, timeouts, limits, roles and the ring."""
        common = {
            "parties": self.caller.parties,
            "links": self.links,
            "timeouts": asdict(self.caller.timeouts),
            "limits": asdict(self.limits),
            "roles": asdict(self.roles),
            "protocol": ["ABY3", 64],
        }
        return hashlib.sha256(json.dumps(common, sort_keys=True).encode()).hexdigest()[:16]

    def gate(self, slot: int, folder: Path) -> Gate:
        """Return the gate of a slot, whose sockets are in `folder`."""
        addresses = [split_address(address) for address in self.links]
        hosts = [self.listen if rank == self.rank else host for rank, (host, _) in enumerate(addresses)]
        ports = [port + slot for _, port in addresses]
        files = {name: str(path) for name, path in vars(self.link_identity).items()}
        return Gate(self.rank, str(folder), tuple(zip(hosts, ports, strict=True)), **files)


def load_caller(path: str | Path) -> CallerConfig:
    """Read a caller's TOML file: [cluster] parties, [timeouts], [identity]. A party's file serves as well.

    Raises:
        CipherDMError: a field is wrong, missing or unknown, or a file that it names is not there.
    """
    path = Path(path)
    sections = read_sections(path, _SECTIONS, optional=("timeouts", "limits", "roles", "party"))
    parties = _addresses(sections["cluster"], "parties")
    return CallerConfig(parties, timeouts_of(sections), certificates_of(sections["identity"], path))


def load_host(path: str | Path) -> HostConfig:
    """Read a party's TOML file: all sections. Raises CipherDMError as `load_caller` does."""
    path = Path(path)
    sections = read_sections(path, _SECTIONS, optional=("timeouts", "limits"))
    with sections["cluster"] as cluster:
        parties, links = _addresses(cluster, "parties"), _addresses(cluster, "links")
        cluster.only("protocol", "ABY3")
        cluster.only("ring_bits", 64)
    rank = sections["party"].whole("rank")
    if rank >= PARTIES:
        raise sections["party"].error("rank", f"is {rank}, and must be 0, 1 or 2")
    own_name = PARTY_NAMES[rank]
    with sections["identity"] as identity:
        caller = CallerConfig(parties, timeouts_of(sections), certificates_of(identity, path, name=own_name))
    with sections["limits"] as fields:
        # A queue may have no places at all, and nobody need wait; a limit of 0 anywhere else would refuse every call.
        usual = asdict(Limits()).items()
        least = {"queue": 0, "batch_wait": 0}
        limits = Limits(**{name: fields.whole(name, value, least=least.get(name, 1)) for name, value in usual})
        if limits.runs_per_client > (most := max(1, limits.runs + limits.queue - 1)):
            problem = f"is {limits.runs_per_client}, and must be at most {most}: one client could take all places"
            raise fields.error("runs_per_client", problem)
    with sections["roles"] as fields:
        roles = RoleNames(fields.texts("owners"), fields.texts("clients"), fields.texts("operators", ()))
        for name, members in asdict(roles).items():
            for party in set(members) & set(PARTY_NAMES):
                problem = f"has {party}: a party has no other role, since it would see more than its share"
                raise fields.error(name, problem)
    with sections["party"] as party:
        sockets = party.text("link_sockets", None)
        config = HostConfig(
            caller,
            rank,
            links,
            certificates_of(party, path, "link_", own_name),
            sockets and path.parent / sockets,
            party.text("listen", split_address(parties[rank])[0]),
            path.parent / party.text("state"),
            party.whole("threads", 1, least=1),
            limits,
            roles,
        )
    _check_ports(cluster, config)
    return config


def agreement_of(cipherdm_version: str, spu_version: str, configuration: str) -> str:
    """Return what must be alike at all three parties before anything runs; `configuration` is `HostConfig.agreement`."""
    return f"{cipherdm_version}/{spu_version}/{configuration}"


def split_address(address: str) -> tuple[str, int]:
    """Split "host:port" into (host, port). Raises ValueError for anything else."""
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


def timeouts_of(sections: Mapping[str, Fields]) -> Timeouts:
    """Read the section [timeouts], whose fields all have defaults."""
    with sections["timeouts"] as fields:
        return Timeouts(**{name: fields.seconds(name, value) for name, value in asdict(Timeouts()).items()})


def certificates_of(fields: Fields, path: Path, prefix: str = "", name: str | None = None) -> Certificates:
    """Read and check the files that a section of the TOML file at `path` names, for a role's `name` if it has a fixed one."""
    paths = {}
    for kind in ("certificate", "private_key", "authority"):
        paths[kind] = path.parent / fields.text(prefix + kind)
        if not paths[kind].is_file():
            raise fields.error(prefix + kind, f"is {paths[kind]}, and there is no such file")
    found = Certificates(**paths)
    try:
        found.check(name)
    except CipherDMError as error:
        raise fields.error(prefix + "certificate", f"does not do: {str(error).rstrip('.')}") from None
    return found


def _check_ports(fields: Fields, config: HostConfig) -> None:
    """Refuse overlapping ranges of ports on one address: each slot takes a port from a party's first one on."""
    taken: dict[tuple[str, int], str] = {}
    uses = [(f"parties[{rank}]", address, 1) for rank, address in enumerate(config.caller.parties)]
    uses += [(f"links[{rank}]", address, config.limits.runs) for rank, address in enumerate(config.links)]
    for name, address, count in uses:
        host, first = split_address(address)
        if first + count > 65536:
            problem = f"is port {first}, and {count} runs at a time need ports up to {first + count - 1}"
            raise fields.error(name, problem)
        for port in range(first, first + count):
            other = taken.setdefault((host, port), name)
            if other != name:
                problem = f"and {other} both use port {port} on {host}; each run at a time takes one more"
                raise fields.error(name, problem)
