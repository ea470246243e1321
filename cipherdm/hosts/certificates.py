"""Certificates: the files of a role, and development certificates, one authority with a certificate for each role.

Development certificates are for one machine and for trials. Anyone who can read the folder can act as any role. In production
each organisation makes its own key and has it signed.
"""

import datetime
import ipaddress
import secrets
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


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
        """Return gRPC's credentials of a server. Its callers must present a certificate of the authority too."""
        pair = self.private_key.read_bytes(), self.certificate.read_bytes()
        return grpc.ssl_server_credentials([pair], self.authority.read_bytes(), require_client_auth=True)


def make_certificates(
    folder: Path,
    roles: tuple[str, ...],
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1"),
    days: int = 7,
) -> dict[str, Certificates]:
    """Make an authority and one certificate per role in `folder`; return their paths by role.

    Keys are ECDSA on P-256, readable by the user only. The role is the certificate's common name and one of its DNS names;
    `hosts` are further names and addresses for which it is valid. The authority's own key is thrown away.
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
        is_authority = key is authority_key
        certificate = (
            x509.CertificateBuilder(authority_name, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(
                x509.BasicConstraints(ca=is_authority, path_length=0 if is_authority else None), critical=True
            )
            .add_extension(_key_usage(signs_certificates=is_authority), critical=True)
        )
        for extension in extensions:
            certificate = certificate.add_extension(extension, critical=False)
        path.write_bytes(certificate.sign(authority_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        return path

    authority = signed(folder / "authority.pem", authority_name, authority_key)
    purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    made = {}
    for role in roles:
        key, key_path = ec.generate_private_key(ec.SECP256R1()), folder / f"{role}.key"
        names = x509.SubjectAlternativeName([_host(host) for host in (role, *hosts)])
        made[role] = Certificates(
            signed(folder / f"{role}.pem", _name(role), key, purposes, names), key_path, authority
        )
        key_path.touch(mode=0o600)
        key_path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
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
