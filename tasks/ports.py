"""Who listens on a port of this machine."""

import socket
from collections.abc import Iterator
from contextlib import suppress

import psutil
import requests

from components.errors import UserError


def listens(pid: int, port: int) -> bool:
    """Whether a process, or one that it has started, listens on a port."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return any(port in _ports(one) for one in (process, *process.children(recursive=True)))
    return False


def refuse_taken(host: str, port: int, url: str) -> None:
    """Whoever is there already would answer in the place of the server that is to listen.

    url: where that server's API would be.

    Raises:
        UserError: the port is in use, or is none that this user may have.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise UserError(_trouble(port, url, error)) from None


def _trouble(port: int, url: str, error: OSError) -> str:
    found = [process for process in psutil.process_iter() if port in _ports(process)]
    who = " and ".join(filter(None, (_named(process) for process in found))) or "a process of another user"
    if _is_prefect(url):
        return (
            f"another Prefect server listens on port {port}: {who}; end it, take another port with --port, or set"
            f" PREFECT_API_URL={url} to work with it."
        )
    if found or error.strerror == "Address already in use":
        return f"port {port} is taken by {who}; end it, or take another port with --port."
    return f"port {port} cannot be listened on ({error.strerror}); take another one with --port."


def _named(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return f"process {process.pid}, {' '.join(process.cmdline())[:120].strip()}"
    return ""


def _ports(process: psutil.Process) -> Iterator[int]:
    """The ports that a process listens on, of those that we may look into."""
    with suppress(psutil.Error):
        for connection in process.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                yield connection.laddr.port


def _is_prefect(url: str) -> bool:
    with suppress(requests.RequestException, ValueError):
        return requests.get(f"{url}/health", timeout=5).json() is True
    return False
