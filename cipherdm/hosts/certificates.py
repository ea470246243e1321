"""Certificates: the files of a role, and development certificates, one authority with a certificate for each role.

Development certificates are for one machine and for trials. Anyone who can read the folder can act as any role. In production
each organisation makes its own key and has it signed.
"""

import datetime
import ipaddress
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..errors import CipherDMError

_WARNING = datetime.timedelta(days=14)  # before the end of a certificate
# Bits of a private key's mode with which others than its user and group may read it, or the group write.
_OTHERS = 0o027


@dataclass(frozen=True)
class Certificates:
    """Paths of one role's PEM files: its certificate, its private key, and the authority's certificate."""

    certificate: Path
    private_key: Path
    authority: Path

    def to_call(self) -> grpc.ChannelCredentials:
        """Return gRPC's credentials of a caller, who presents the certificate."""
        pair = self.private_key.read_bytes(), self.certificate.read_bytes()
        return grpc.ssl_channel_credentials(self.authority.read_bytes(), *pair)

    def to_serve(self) -> grpc.ServerCredentials:
        """Return gRPC's credentials of a server. Its callers must present a certificate of the authority too.

        Files that have changed are read again when somebody connects, if they are in order.
        """

        def read() -> grpc.ServerCertificateConfiguration:
            pair = self.private_key.read_bytes(), self.certificate.read_bytes()
            return grpc.ssl_server_certificate_configuration([pair], self.authority.read_bytes())

        loaded = self.version

        def changed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal loaded
            try:
                if (version := self.version) == loaded:
                    return None
                self.check()
                new, loaded = read(), version
                return new
            except (OSError, CipherDMError):
                return None

        return grpc.dynamic_ssl_server_credentials(read(), changed, require_client_authentication=True)

    @property
    def version(self) -> tuple[int, ...]:
        """Times at which the files were changed."""
        return tuple(path.stat().st_mtime_ns for path in vars(self).values())

    def check(self, name: str | None = None) -> str:
        """Check that the files fit each other and the time, and that the certificate has this name.

        Returns:
            A warning if the certificate ends soon: within 14 days, or a quarter of its time if that is less. Otherwise "".

        Raises:
            CipherDMError: what is wrong, and with which file.
        """
        now, path = datetime.datetime.now(datetime.UTC), self.certificate
        own, *chain = _read(path, x509.load_pem_x509_certificates)
        authorities = _read(self.authority, x509.load_pem_x509_certificates)
        key = _read(self.private_key, lambda data: serialization.load_pem_private_key(data, None))
        mode = self.private_key.stat().st_mode
        if mode & _OTHERS:
            raise CipherDMError(f"{self.private_key} is open to others (mode {mode & 0o777:o}); chmod it to 600.")
        if key.public_key() != own.public_key():
            raise CipherDMError(f"{self.private_key} is not the key of {path}.")
        issuers = [authority for authority in (*chain, *authorities) if _has_signed(authority, own)]
        if not issuers:
            raise CipherDMError(f"{path} was not signed by the authority in {self.authority}.")
        for file, certificate in ((path, own), (self.authority, issuers[0])):
            if now < certificate.not_valid_before_utc:
                raise CipherDMError(
                    f"{file} is not valid before {_day(certificate.not_valid_before_utc)}; see the clock."
                )
            if now > certificate.not_valid_after_utc:
                raise CipherDMError(f"{file} expired at {_day(certificate.not_valid_after_utc)}; get a new one.")
        if name is not None and name_of(own, (name,)) != name:
            raise CipherDMError(f"{path} must have {name} as its one common name and as a DNS name.")
        end, whole = own.not_valid_after_utc, own.not_valid_after_utc - own.not_valid_before_utc
        return f"{path.name} expires at {_day(end)}" if end - now < min(_WARNING, whole / 4) else ""


def name_of(certificate: x509.Certificate, reserved: Collection[str]) -> str:
    """Return the one common name of a certificate; empty if it has none or several, or characters that names do not have.

    It is empty too if the certificate has a reserved name as common name or as DNS name, and not as both: callers look at
    the one, and parties at the other.
    """
    try:
        names = [part.value for part in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        others = {other.lower() for other in alternative.get_values_for_type(x509.DNSName)}
    except x509.ExtensionNotFound:
        others = set()
    except ValueError:
        return ""
    if len(names) != 1 or not isinstance(names[0], str) or not names[0].isprintable():
        return ""
    posing = any(name in reserved for name in (names[0], *others)) and (others & set(reserved)) != {names[0]}
    return "" if posing else names[0]


def caller_of(pem: bytes, reserved: Collection[str]) -> str:
    """Return the name in a caller's certificate as `name_of` does; empty if its time is over."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except ValueError:
        return ""
    # gRPC looks at the time when the connection is made, and not again.
    over = datetime.datetime.now(datetime.UTC) > certificate.not_valid_after_utc
    return "" if over else name_of(certificate, reserved)


def _read(path: Path, load):
    try:
        return load(path.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise CipherDMError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is no such PEM file'}."
        ) from None


def _has_signed(authority: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _day(time: datetime.datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"


def make_certificates(
    folder: Path,
    roles: tuple[str, ...],
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1"),
    days: int = 7,
    *,
    callers: Collection[str] = (),
) -> dict[str, Certificates]:
    """Make an authority and one certificate per role in `folder`; return their paths by role.

    Keys are ECDSA on P-256, readable by the user only. The role is the certificate's common name and one of its DNS names;
    `hosts` are further names and addresses for which it is valid. Roles in `callers` only call: with their certificates nobody
    can serve. The authority's own key is thrown away.
    """
    folder.mkdir(parents=True, exist_ok=True)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    # A verifier looks up an issuer by name, so two authorities must not have the same name.
    authority_name = _name(f"cipherdm development authority {secrets.token_hex(4)}")
    now = datetime.datetime.now(datetime.UTC)
    start = now - datetime.timedelta(minutes=5)  # clocks of different hosts differ slightly

    def signed(
        path: Path, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *extensions: x509.ExtensionType
    ) -> Path:
        signs = key is authority_key
        certificate = (
            x509.CertificateBuilder(authority_name, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=signs, path_length=0 if signs else None), critical=True)
            .add_extension(_key_usage(signs_certificates=signs), critical=True)
        )
        for extension in extensions:
            certificate = certificate.add_extension(extension, critical=False)
        path.write_bytes(certificate.sign(authority_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        return path

    authority = signed(folder / "authority.pem", authority_name, authority_key)
    made = {}
    for role in roles:
        key, key_path = ec.generate_private_key(ec.SECP256R1()), folder / f"{role}.key"
        serves = [] if role in callers else [ExtendedKeyUsageOID.SERVER_AUTH]
        purposes = x509.ExtendedKeyUsage([*serves, ExtendedKeyUsageOID.CLIENT_AUTH])
        names = x509.SubjectAlternativeName([_host(host) for host in (role, *hosts)])
        made[role] = Certificates(
            signed(folder / f"{role}.pem", _name(role), key, purposes, names), key_path, authority
        )
        key_path.touch(mode=0o600)
        kinds = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        key_path.write_bytes(key.private_bytes(*kinds))
    return made


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        **dict.fromkeys((*others, "encipher_only", "decipher_only"), False),
    )
