"""The folder of a team's installation: secrets, made once, and what a clone needs to connect.

settings.env    the secrets, and ports that are not to be the usual ones: infra/env.example, filled in
clone.env       for clones to source
database/ store/ proxy/ prefect/ settings/ log/
"""

import os
import re
import secrets
import shlex
import socket
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from components.errors import UserError
from tasks.team.services import COMPOSE, LOOPBACK

SETTINGS, CLONE = "settings.env", "clone.env"
DATABASE_USER = "postgres"  # whom Debian's package makes: PostgreSQL refuses to be run by root
MADE = ("DATABASE_PASSWORD", "STORE_PASSWORD", "STORE_KEY", "MLFLOW_PASSWORD", "MLFLOW_KEY")
YEARS = timedelta(days=3650)


def open_state(state: Path, root: Path) -> dict[str, str]:
    """The installation's settings; a folder that has none gets secrets of its own, for nobody else to read.

    Raises:
        UserError: PostgreSQL could not enter the folder, or a value is none that all servers can take.
    """
    if not state.exists():
        state.mkdir(parents=True)
        state.chmod(0o711)  # for the user of PostgreSQL to pass through
    if os.geteuid() == 0:
        _refuse_closed(state)
    path = state / SETTINGS
    if not path.exists():
        made = {name: secrets.token_hex(24) for name in MADE}
        users = {"STORE_USER": "thaw", "MLFLOW_USER": "thaw", "PREFECT_LOGIN": f"thaw:{secrets.token_hex(24)}"}
        write_secret(path, "".join(f"{name}={value}\n" for name, value in (made | users).items()))
    lines = path.read_text(encoding="utf-8").splitlines()
    settings = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    for name, value in settings.items():
        if not re.fullmatch(r"[\w:.-]+", value):  # it becomes a part of URLs
            raise UserError(f"{path}: {name} is to be of letters, digits and the characters _ : . - alone.")
    return settings | {"PROJECT": str(root)}


def refuse_taken_ports(root: Path, settings: Mapping[str, str]) -> None:
    """Somebody else's server could answer in the place of one of ours.

    Raises:
        UserError: a port is in use.
    """
    usual = dict(re.findall(r"\$\{(\w+_PORT):-(\d+)\}", (root / COMPOSE).read_text(encoding="utf-8")))
    for name, port in (usual | dict(settings)).items():
        if name in usual:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((LOOPBACK, int(port)))
                except OSError:
                    raise UserError(f"port {port} is in use; set {name} to a free one in {SETTINGS}.") from None


def write_clone(state: Path, environment: Mapping[str, str]) -> Path:
    """The file that a clone sources; it holds passwords."""
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in environment.items()]
    write_secret(state / CLONE, "".join(lines))
    return state / CLONE


def write_secret(path: Path, text: str) -> None:
    """A file that its owner alone can read, at no moment with half of its text."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    partial.replace(path)


def store_certificate(state: Path) -> dict[str, str]:
    """The settings with which the store's parts answer to each other alone: a certificate of their own for all of them.

    In a container nobody else reaches their ports; on a machine every user does.
    """
    certificate, key = state / "settings/store.crt", state / "settings/store.key"
    if not certificate.exists():
        _make_certificate(certificate, key)
    files = {"CERT": str(certificate), "KEY": str(key)}
    parts = ("GRPC_MASTER", "GRPC_VOLUME", "GRPC_FILER", "GRPC_S3", "GRPC_CLIENT", "HTTPS_MASTER")
    by_part = {f"WEED_{part}_{kind}": path for part in parts for kind, path in files.items()}
    return by_part | {"WEED_GRPC_CA": str(certificate), "WEED_HTTPS_MASTER_CA": str(certificate)}


def _make_certificate(certificate: Path, key: Path) -> None:
    """A self-signed one, which is its own authority."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "thaw")])
    made = (
        x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number(), now, now + YEARS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    encoded = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_secret(key, encoded.decode())
    write_secret(certificate, made.public_bytes(serialization.Encoding.PEM).decode())


def _refuse_closed(state: Path) -> None:
    """Root's PostgreSQL runs as a user of its own, who has to reach its files."""
    for folder in (state, *state.resolve().parents):
        if not folder.stat().st_mode & 0o001:
            raise UserError(
                f"PostgreSQL runs as the user {DATABASE_USER} where root starts it, and that one cannot enter {folder}:"
                " set THAW_TEAM to a folder that it can, such as /srv/thaw."
            )
