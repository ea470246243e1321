"""Certificates and TOML files for a trial: all roles, on one machine or several.

Whoever makes them holds all private keys for a moment, and could act as any role. In production every organisation makes its
own key and has it signed; DEPLOYING.md says how.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from ..engine.config import PARTIES
from ..errors import CipherDMError
from ..files import replacing
from .certificates import Certificates, make_certificates
from .config import PARTY_NAMES, Limits, Timeouts

OWNER, CLIENT, OPERATOR = "owner", "client", "operator"


def make_trial(
    folder: Path,
    *,
    hosts: Sequence[str] = ("127.0.0.1",),
    port: int = 9300,
    clients: Sequence[str] = (CLIENT,),
    timeouts: Timeouts = Timeouts(),  # noqa: B008 (a frozen value)
    limits: Limits = Limits(),  # noqa: B008
    days: int = 7,
) -> dict[str, Path]:
    """Make two authorities, a certificate for each role, and a TOML file for each; return the files by role.

    Args:
        folder: folder of the files. It must not have such files yet: parties that run with them would stop working.
        hosts: addresses of the parties by rank, or one for all three.
        port: port of party 0; the other parties and the links between them use the ports after it.
        clients: common names of the clients.
        timeouts, limits: sections of the files.
        days: validity of the certificates.

    Raises:
        CipherDMError: names, addresses or ports do not fit, or there are such files.
    """
    roles = (*PARTY_NAMES, OWNER, *clients, OPERATOR)
    hosts = tuple(hosts) * (PARTIES if len(hosts) == 1 else 1)
    if len(hosts) != PARTIES:
        raise CipherDMError(f"there are three parties, and {len(hosts)} addresses; give one for all, or one each.")
    for host in hosts:
        if not re.fullmatch(r"[\w.-]+", host, re.ASCII):
            raise CipherDMError(f"{host!r} is no address: give names or IPv4 addresses, without a scheme and a port.")
    if len(set(roles)) != len(roles):
        raise CipherDMError(f"two roles have the same name among {', '.join(roles)}; name clients differently.")
    for role in roles:
        # A name stands in a certificate, in a TOML file and in the names of files.
        if not re.fullmatch(r"[\w.@ -]+", role, re.ASCII):
            raise CipherDMError(
                f"{role!r} cannot be the name of a client: use letters, digits, spaces, '.', '_', '@' and '-'."
            )
    # Callers reach each party at one port; parties reach each other at one for each run at a time.
    first_link = port + PARTIES
    last = first_link + PARTIES * limits.runs - 1
    if not 0 < port <= last < 65536:
        raise CipherDMError(f"a trial needs the ports {port} to {last}; choose port so that all are from 1 to 65535.")
    parties = [f"{host}:{port + rank}" for rank, host in enumerate(hosts)]
    links = [f"{host}:{first_link + rank * limits.runs}" for rank, host in enumerate(hosts)]
    if any((folder / f"{role}.toml").exists() for role in roles):
        raise CipherDMError(f"{folder} has such files already; choose another folder, or delete it.")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    names = ("localhost", *dict.fromkeys(hosts))
    identities = make_certificates(folder, roles, names, days, callers=(OWNER, *clients, OPERATOR))
    link_identities = make_certificates(folder / "links", PARTY_NAMES, names, days)
    common = "# The sections up to [identity] are the same at all three parties.\n"
    common += section("cluster", {"parties": parties, "links": links, "protocol": "ABY3", "ring_bits": 64})
    common += section("timeouts", vars(timeouts)) + section("limits", vars(limits))
    common += section("roles", {"owners": [OWNER], "clients": list(clients), "operators": [OPERATOR]})
    files = {}
    for role in roles:
        text = common + section("identity", paths_in(folder, identities[role]))
        if role in PARTY_NAMES:
            link = {f"link_{name}": path for name, path in paths_in(folder, link_identities[role]).items()}
            about = {"rank": PARTY_NAMES.index(role), "state": f"{role}-state"}
            text += section("party", about | link)
        files[role] = folder / f"{role}.toml"
        with replacing(files[role]) as temporary:
            temporary.write_text(text)
    return files


def section(name: str, fields: dict) -> str:
    """Return a section of a TOML file, of texts, numbers and lists of them."""
    # Texts, numbers and lists of them are written alike in JSON and in TOML.
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in fields.items()]
    return f"[{name}]\n" + "".join(lines) + "\n"


def paths_in(folder: Path, certificates: Certificates) -> dict[str, str]:
    """Return the fields of a section [identity] in a file of that folder."""
    return {name: str(path.relative_to(folder)) for name, path in vars(certificates).items()}
