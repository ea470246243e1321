"""Development certificates, made at run time: one authority and a certificate for each role.

They are for one machine and one run. Anyone who can read the folder can act as any role. In production each organisation
makes its own key and has it signed.
"""

import datetime
import ipaddress
import secrets
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from .config import Certificates

ROLES = ("party0", "party1", "party2", "client", "owner")


def make_certificates(
    folder: Path,
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1"),
    days: int = 7,
    roles: tuple[str, ...] = ROLES,
) -> dict[str, Certificates]:
    """Make an authority and one certificate per role in `folder`; return their paths by role.

    Keys are ECDSA on P-256, readable by the user only. The role is the certificate's common name and one of its DNS names;
    `hosts` are further names and addresses for which it is valid. The authority's own key is thrown away.
    """
    folder.mkdir(parents=True, exist_ok=True)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    # A verifier looks up an issuer by name, so two authorities must not have the same name.
    authority_name = _name(f"cipherdm development authority {secrets.token_hex(4)}")
    authority = (
        _builder(authority_name, authority_name, authority_key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    authority_path = folder / "authority.pem"
    authority_path.write_bytes(authority.public_bytes(serialization.Encoding.PEM))

    made = {}
    for role in roles:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(_name(role), authority_name, key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName([_host(host) for host in (role, *hosts)]), critical=False)
            .sign(authority_key, hashes.SHA256())
        )
        paths = Certificates(folder / f"{role}.pem", folder / f"{role}.key", authority_path)
        paths.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        paths.private_key.touch(mode=0o600)
        paths.private_key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        made[role] = paths
    return made


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))  # clocks of different hosts differ slightly
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
