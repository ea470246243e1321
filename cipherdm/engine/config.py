"""Typed configuration of the engine: of the computation, and of one party."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from spu import libspu

PARTIES = 3


def direct_spu_log(path: Path) -> None:
    """Send SPU's log to a file instead of standard output. SPU has one log for the whole process."""
    options = libspu.logging.LogOptions()
    options.enable_console_logger = False
    options.system_log_path = str(path)
    options.max_log_file_size = 1 << 40  # no rotation
    libspu.logging.setup_logging(options)


direct_spu_log(Path("/dev/null"))


@dataclass(frozen=True)
class EngineConfig:
    """Configuration of a computation: SPU's ABY3 over Z_2^64 with fixed-point numbers.

    Attributes:
        fraction_bits: fraction bits of the fixed-point encoding.
        exp: SPU's method for exponentials. "taylor" is its default, (1 + x/2^8)^(2^8); "pade" is the more exact and more
            expensive setting of the CipherDM release.
        small_fraction_bits: fraction bits of a second computation in the ring of 32 bits, for protocols that have one.
    """

    fraction_bits: int = 18
    exp: Literal["taylor", "pade"] = "taylor"
    small_fraction_bits: int | None = None

    @property
    def limit(self) -> float:
        """Magnitude from which on a value is refused, 2^(62 - 2 fraction_bits).

        SPU can represent more. But a product carries twice the fraction bits until it is truncated, and SPU's truncation needs
        words below 2^62. Beyond the limit results are sometimes wrong, and from twice the limit on always, without any error:
        even x * 1 is. With more than 31 fraction bits SPU's own products are useless, so only the representation limits.
        """
        return 2.0 ** (62 - 2 * self.fraction_bits if self.fraction_bits < 32 else 63 - self.fraction_bits)

    def runtime_config(self, *, small: bool = False) -> libspu.RuntimeConfig:
        """Return the configuration in SPU's own type, of the ring of 64 bits, or of 32 if `small`."""
        field, bits = libspu.FieldType.FM64, self.fraction_bits
        if small:
            field, bits = libspu.FieldType.FM32, self.small_fraction_bits
        config = libspu.RuntimeConfig(libspu.ProtocolKind.ABY3, field, bits)
        modes = libspu.RuntimeConfig.ExpMode
        config.fxp_exp_mode = {"taylor": modes.EXP_TAYLOR, "pade": modes.EXP_PADE}[self.exp]
        config.enable_pphlo_profile = config.enable_hal_profile = True  # costs little, and costs are read from it
        return config


@dataclass(frozen=True)
class PartyConfig:
    """Configuration of one party's process. All its sockets are Unix sockets, so it can be reached from this machine alone.

    Its folder `work`, which only this user may open, has the socket for the client, SPU's log, from which costs are read, and
    variables in files that end with their session.
    """

    rank: int
    work: Path
    links: tuple[
        Path, Path, Path
    ]  # SPU's sockets by rank: its own to listen at, and those at which the others are reached
    link_id: str  # the same for the three parties, and nobody else can guess it
    connect_timeout: float = 8.0  # seconds to wait for the other two parties
    receive_timeout: float = 600.0  # seconds to wait for another party's message
    files: Path | None = None  # folder for variables in files that outlive the process

    @property
    def control(self) -> str:
        """Address at which it serves its client (gRPC)."""
        return f"unix:{self.work / f'control{self.rank}.sock'}"

    def to_json(self) -> str:
        """Return one line of JSON, as a party process reads it from its standard input."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> "PartyConfig":
        """Invert `to_json`."""
        fields = json.loads(text)
        fields["links"], fields["work"] = tuple(map(Path, fields["links"])), Path(fields["work"])
        fields["files"] = fields["files"] and Path(fields["files"])
        return cls(**fields)
