"""Typed configuration of the engine: how the parties compute, and how one party is reached."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from spu import libspu

PARTIES = 3


def direct_spu_log(path: Path) -> None:
    """Send SPU's log, which goes to standard output otherwise, to a file. SPU has one log for the whole process."""
    options = libspu.logging.LogOptions()
    options.enable_console_logger = False
    options.system_log_path = str(path)
    options.max_log_file_size = 1 << 40  # no rotation
    libspu.logging.setup_logging(options)


direct_spu_log(Path("/dev/null"))


@dataclass(frozen=True)
class EngineConfig:
    """How three parties compute: SPU's ABY3 over Z_2^64 with fixed-point numbers.

    Attributes:
        fraction_bits: fraction bits of the fixed-point encoding.
        exp: how SPU evaluates an exponential: "taylor" is its default, (1 + x/2^8)^(2^8); "pade" is the more exact and
            more expensive setting of the CipherDM release.
        profile: record seconds, bytes and sends of every operator and of every kernel. It costs little.
        receive_timeout: seconds after which a party stops waiting for a message of another.
    """

    fraction_bits: int = 18
    exp: Literal["taylor", "pade"] = "taylor"
    profile: bool = True
    receive_timeout: float = 600.0

    @property
    def limit(self) -> float:
        """The magnitude above which a value is refused, 2^(62 - 2 fraction_bits).

        SPU can represent more, but a product carries twice the fraction bits until it is truncated, and SPU's truncation
        asks for words below 2^62. Beyond that results are wrong now and then, and from twice the limit on always, without a
        word: even x * 1 is. With more than 31 fraction bits SPU's own products are of no use, and the limit is that
        of the representation.
        """
        return 2.0 ** (62 - 2 * self.fraction_bits if self.fraction_bits < 32 else 63 - self.fraction_bits)

    def runtime_config(self) -> libspu.RuntimeConfig:
        """The same, as SPU takes it."""
        config = libspu.RuntimeConfig(libspu.ProtocolKind.ABY3, libspu.FieldType.FM64, self.fraction_bits)
        modes = libspu.RuntimeConfig.ExpMode
        config.fxp_exp_mode = {"taylor": modes.EXP_TAYLOR, "pade": modes.EXP_PADE}[self.exp]
        config.enable_pphlo_profile = self.profile
        config.enable_hal_profile = self.profile
        return config


@dataclass(frozen=True)
class Certificates:
    """Paths of what one role presents and trusts: its certificate, its private key, the authority's certificate (PEM)."""

    certificate: Path
    private_key: Path
    authority: Path

    def read(self) -> tuple[bytes, bytes, bytes]:
        """The three files' contents, in the order of the fields."""
        return self.certificate.read_bytes(), self.private_key.read_bytes(), self.authority.read_bytes()


@dataclass(frozen=True)
class PartyConfig:
    """What one party process needs to know.

    Attributes:
        rank: 0, 1 or 2.
        control: `host:port` at which it serves clients (gRPC), or `unix:PATH` for a socket that only its user can open.
        links: `host:port` of all three parties for the traffic among them (SPU's brpc), by rank.
        certificates: what it presents and trusts, on both planes.
        work: a folder for SPU's log, from which the costs are read, and for variables in files that go with their session.
        connect_timeout: seconds to wait for the other two parties.
        receive_timeout: seconds to wait for a message of another party.
        files: a folder for variables in files that outlive the process; None if there are to be none.
    """

    rank: int
    control: str
    links: tuple[str, str, str]
    certificates: Certificates
    work: Path
    connect_timeout: float = 8.0
    receive_timeout: float = 600.0
    files: Path | None = None

    def to_json(self) -> str:
        """One line of JSON, as a party process reads it from its standard input."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> "PartyConfig":
        """The inverse of `to_json`."""
        fields = json.loads(text)
        certificates = Certificates(**{name: Path(value) for name, value in fields.pop("certificates").items()})
        links, work = tuple(fields.pop("links")), Path(fields.pop("work"))
        files = fields.pop("files")
        return cls(
            certificates=certificates, links=links, work=work, files=None if files is None else Path(files), **fields
        )
