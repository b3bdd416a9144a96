"""Addresses of services: as people are shown them, without user names and passwords, and ports that are free."""

import re
import socket

from components.errors import Refused, UserError

USER = re.compile(r"""(?<=://)(?!/)[^\s'"]*@""")  # up to the last @, for a password may hold one, and a slash
QUERY = re.compile(r"""(://[^\s'"?]*)\?[^\s'"]*""")


def shown(text: str) -> str:
    """A URI, or a text with URIs in it, without user names, passwords and queries, which may hold them too."""
    return QUERY.sub(r"\1", USER.sub("", text))


def postgres_trouble(uri: str, error: Exception, setting: str) -> UserError:
    """What keeps PostgreSQL from being used.

    error: of psycopg2, or of SQLAlchemy around it. setting: where its address is from.
    """
    said = " ".join(str(getattr(error, "orig", error)).splitlines()[:1])
    if "authentication failed" in said or "no password supplied" in said:
        return Refused(f"PostgreSQL at {shown(uri)} refuses user or password; correct them in {setting}.")
    if "does not exist" in said:
        return UserError(
            f"PostgreSQL at {shown(uri)} does not know this user or database; create it, or correct {setting}."
        )
    return UserError(f"PostgreSQL at {shown(uri)} does not answer; start it, or correct {setting}. ({shown(said)})")


def free_port(host: str) -> int:
    """A port of this machine's address `host` that nobody listens to at the moment; "" is all of its addresses."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]
