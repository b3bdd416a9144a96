"""A team's servers, really started: a clone works with them, another one finds what it made, and nobody else does."""

import asyncio
import filecmp
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import boto3
import grpc
import httpx
import mlflow
import psutil
import pytest
import requests
from botocore.exceptions import SSLError
from fastapi.routing import APIWebSocketRoute
from mlflow.exceptions import MlflowException
from prefect.client.orchestration import get_client
from prefect.server.api.server import API_ROUTERS
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_SSL_CERT_FILE,
    PREFECT_API_URL,
    temporary_settings,
)  # fmt: skip
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.conftest import SMALL
from tests.flows.scratch import Scratch, lives, until
from tests.infra.team import TeamServers, documented, resolved
from tests.postgres import programs

pytestmark = pytest.mark.slow

TINY = [*SMALL, "arms=[garl-q1]", "train.steps=2", "task.train=16", "probe.look_ahead=0", "evaluation.samples=2"]
# MLflow's server as it is run, asked for every route that it has; the paths are in the notations of Flask and FastAPI.
MLFLOW_ROUTES = """
import json
from mlflow.server import app
from mlflow.server.auth import create_app
served = create_app(app)
flask = [(rule.rule, method) for rule in app.url_map.iter_rules() for method in rule.methods]
native = [(route.path, method) for route in served.routes if hasattr(route, "methods") for method in route.methods]
print(json.dumps(sorted({*flask, *native})))
"""
# What answers everybody; infra/README.md names it.
MLFLOW_OPEN = {
    "/health", "/api/3.0/mlflow/server-info", "/ajax-api/3.0/mlflow/server-info", "/static-files/<path:path>",
}  # fmt: skip
PREFECT_OPEN = {"/api/health", "/api/ready"}
OPEN = {
    "MLFLOW_PORT": ["/health", "/api/3.0/mlflow/server-info", "/ajax-api/3.0/mlflow/server-info"],
    "PREFECT_PORT": [*PREFECT_OPEN, "/", "/runs", "/docs", "/openapi.json"],
    "STORE_PORT": ["/healthz", "/status"],
    "STORE_VOLUME_PORT": ["/status"],
}


@dataclass(frozen=True)
class Worked:
    """A clone that worked, another that fetched what it made, and the servers, moved to another folder in between."""

    servers: TeamServers
    first: Scratch
    second: Scratch
    said: dict[str, str]
    survivors: list[psutil.Process] = field(default_factory=list)  # of the first start


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worked]:
    programs()  # installs PostgreSQL, or skips
    folder = tmp_path_factory.mktemp("team")
    first = Scratch.clone(folder / "first", folder / "prefect", TINY)
    second = Scratch(folder / "second", folder / "other-prefect")
    servers = TeamServers(first)

    def connected(project: Scratch, command: str) -> str:
        return project.run("bash", "-c", f"source {servers.state}/clone.env && {command}")

    try:
        servers.start()
        said = {"sweep": connected(first, "thaw sweep")}
        first.run("dvc", "remote", "add", "--default", "team", "s3://thaw/dvc")
        said["push"] = connected(first, "dvc push")
        first.run("git", "add", "--all")
        first.run("git", "-c", "user.name=T", "-c", "user.email=t@example.org", "commit", "-qm", "built")
        first.run("git", "clone", "--quiet", str(first.folder), str(second.folder))
        family = servers.family
        servers.stop()
        survivors = [process for process in family if lives(process.pid)]
        servers.move(folder)
        servers.start()
        said["pull"] = connected(second, "dvc pull")
        said["lineage"] = connected(second, "thaw lineage thaw-skills@best")
        yield Worked(servers, first, second, said, survivors)
    finally:
        servers.remove()


def test_what_one_clone_has_built_comes_out_of_the_store_in_another(worked: Worked):
    built = [path.relative_to(worked.first.folder) for path in worked.first.folder.glob("build/train/**/final/*")]
    assert any(path.suffix == ".safetensors" for path in built)
    for path in built:
        assert filecmp.cmp(worked.first.folder / path, worked.second.folder / path, shallow=False)
    assert worked.second.stale() == set()


def test_a_registered_version_comes_out_of_the_store_in_another_clone(worked: Worked):
    assert re.search(r"weights .*true", worked.said["lineage"]), worked.said["lineage"]
    assert not (worked.second.folder / "mlflow.db").exists()


def test_prefect_has_the_run_and_the_worker_has_deployed(worked: Worked):
    with worked.servers.session("PREFECT") as api:
        runs = api.post(f"{worked.servers.clone['PREFECT_API_URL']}/flow_runs/filter", json={}).json()
        swept = [run["state_type"] for run in runs if run["name"] in worked.said["sweep"]]
        assert swept == ["COMPLETED"]
        deployments = api.post(f"{worked.servers.clone['PREFECT_API_URL']}/deployments/filter", json={}).json()
    assert "nightly" in {deployment["name"] for deployment in deployments}


def test_ctrl_c_ends_everything(worked: Worked):
    assert worked.survivors == []


def test_processes_are_those_of_the_compose_file(worked: Worked):
    servers = worked.servers
    described = resolved(servers.settings)["services"]
    running = {process.pid: process.cmdline() for process in servers.family}
    environments = [process.environ() for process in servers.family]
    for name, service in described.items():
        words = [*(service["entrypoint"] or []), *service["command"]]
        same = [word for word in words[1:] if not re.search(rf"/|0\.0\.0\.0|({'|'.join(described)}):", word)]
        program = Path(words[0]).name
        assert any(program in " ".join(line[:2]) and all(word in line for word in same) for line in running.values()), (
            name
        )
        fixed = {key: value for key, value in service["environment"].items() if not re.search(r"[/@]", value)}
        fixed = {} if name == "database" else fixed  # initdb had them
        assert any(fixed.items() <= environment.items() for environment in environments), name


def test_they_listen_on_the_loopback_interface_alone(worked: Worked):
    listening = {
        connection.laddr
        for process in worked.servers.family
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {address.ip for address in listening} == {"127.0.0.1"}
    assert set(worked.servers.ports.values()) <= {address.port for address in listening}


def test_secrets_are_for_their_owner_alone(worked: Worked):
    servers = worked.servers
    secret = [value for name, value in servers.settings.items() if re.search("PASSWORD|KEY|LOGIN", name)]
    passwords = {value.rpartition(":")[2] for value in secret}
    assert len(passwords) == 6
    open_to_others = [path.name for path in servers.state.iterdir() if path.stat().st_mode & 0o077]
    assert open_to_others == []
    for process in servers.family:
        assert not any(password in word for password in passwords for word in process.cmdline())


def test_mlflow_refuses_every_route_without_credentials(worked: Worked):
    servers = worked.servers
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "auth.ini").write_text(
            f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/auth.db\n"
        )
        settings = {"_MLFLOW_SGI_NAME": "uvicorn", "MLFLOW_AUTH_CONFIG_PATH": f"{folder}/auth.ini"}
        settings |= {"MLFLOW_AUTH_ADMIN_USERNAME": "a", "MLFLOW_AUTH_ADMIN_PASSWORD": "b" * 16}
        settings |= {"MLFLOW_FLASK_SERVER_SECRET_KEY": "c"}
        command, environment = [sys.executable, "-c", MLFLOW_ROUTES], os.environ | settings
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True)
    routes = [(path, method) for path, method in json.loads(done.stdout) if method != "OPTIONS"]
    routes += [(path, "GET") for path in ("/docs", "/openapi.json", "/redoc", "/metrics")]
    assert len(routes) > 500
    for login in (None, (servers.settings["MLFLOW_USER"], "wrong")):
        tried = routes if login is None else routes[::20]
        with worked.servers.session() as plain:
            plain.auth = login
            base = f"http://127.0.0.1:{servers.ports['MLFLOW_PORT']}"
            let_in = {path for path, method in tried if plain.request(method, base + _filled(path)).status_code != 401}
            assert let_in == MLFLOW_OPEN if login is None else let_in <= MLFLOW_OPEN


def test_prefect_refuses_every_route_without_credentials(worked: Worked):
    servers = worked.servers
    base = f"http://127.0.0.1:{servers.ports['PREFECT_PORT']}"
    with servers.session() as plain:
        described = plain.get(f"{base}/openapi.json").json()["paths"]
        routes = [(f"/api{path}", method) for path, methods in described.items() for method in methods]
        assert len(routes) > 150
        let_in = set()
        for path, method in routes:
            answer = plain.request(method, base + _filled(path), json=None if method == "get" else {})
            let_in |= {path} if answer.status_code != 401 else set()
        assert let_in == PREFECT_OPEN
        assert plain.get(f"{base}/api/admin/version", auth=("thaw", "wrong")).status_code == 401
    sockets = {route.path for router in API_ROUTERS for route in router.routes if isinstance(route, APIWebSocketRoute)}
    assert len(sockets) >= 4
    for path in sockets:
        asyncio.run(_refused(f"{base.replace('http', 'ws')}/api{_filled(path)}"))


def test_what_answers_everybody_tells_nothing(worked: Worked):
    servers = worked.servers
    with servers.session("PREFECT") as api:
        runs = api.post(f"{servers.clone['PREFECT_API_URL']}/flow_runs/filter", json={}).json()
    [swept] = [run for run in runs if run["name"] in worked.said["sweep"]]
    data = {swept["id"], swept["name"], "thaw-skills", "s3://", "mlflow/", "nightly", "postgresql://thaw", "dvc/"}
    data |= {value.rpartition(":")[2] for name, value in servers.settings.items() if re.search("PASSWORD|KEY", name)}
    with servers.session() as plain:
        for port, paths in OPEN.items():
            for path in paths:
                answer = plain.get(f"http://127.0.0.1:{servers.ports[port]}{path}")
                assert answer.status_code == 200, (port, path)
                assert not [word for word in data if word in answer.text], (port, path)


def test_a_person_gets_an_account_and_rights(worked: Worked, monkeypatch: pytest.MonkeyPatch):
    from mlflow.server.auth.client import AuthServiceClient  # takes seconds, of every process that collects this file

    servers = worked.servers
    said = worked.first.run("bash", "-c", f"source {servers.state}/clone.env && {documented('python -c')}")
    uri = f"http://127.0.0.1:{servers.ports['MLFLOW_PORT']}"
    accounts = AuthServiceClient(uri)

    def login(name: str, password: str) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)

    administrator = servers.settings["MLFLOW_USER"], servers.settings["MLFLOW_PASSWORD"]
    ada, bob = ("ada", said.split()[-1]), ("bob", "b" * 20)
    client = mlflow.MlflowClient(uri)
    login(*administrator)
    accounts.create_user(*bob)
    login(*bob)  # works with everything, and deletes what is his
    own = client.create_experiment("bob's")
    theirs = client.get_run(client.get_model_version("thaw-skills", "1").run_id).info.experiment_id
    client.log_text(client.create_run(own).info.run_id, "text", "file.txt")
    client.delete_experiment(own)
    client.set_registered_model_alias("thaw-skills", "tried", "1")
    for forbidden in (
        lambda: client.delete_experiment(theirs),
        lambda: client.delete_registered_model_alias("thaw-skills", "tried"),
        lambda: accounts.create_user("eve", "e" * 20),
    ):
        with pytest.raises(MlflowException, match="Permission denied"):
            forbidden()
    login(*ada)
    client.delete_registered_model_alias("thaw-skills", "tried")
    login(*administrator)
    accounts.grant_user_permission("ada", "experiment", theirs, "DENY")
    accounts.update_user_admin("bob", True)
    login(*ada)
    with pytest.raises(MlflowException, match="Permission denied"):
        client.get_experiment(theirs)
    login(*bob)
    accounts.delete_user("ada")
    login(*ada)
    with pytest.raises(MlflowException, match="401"):
        client.get_experiment(theirs)


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_the_store_refuses_every_operation_without_credentials(worked: Worked):
    ports = worked.servers.ports
    operations = boto3.client("s3", region_name="us-east-1").meta.service_model
    assert len(operations.operation_names) > 80
    with worked.servers.session() as plain:
        for name in operations.operation_names:
            http = operations.operation_model(name).http
            uri = http["requestUri"].replace("{Bucket}", "thaw").replace("{Key+}", "mlflow/a")
            answer = plain.request(http["method"], f"http://127.0.0.1:{ports['STORE_PORT']}{uri}")
            assert answer.status_code in (403, 405), (name, answer.status_code)  # 405: it does not have that operation
        for port, path in {"STORE_VOLUME_PORT": "/1,0", "STORE_FILER_PORT": "/buckets/thaw/"}.items():
            assert plain.get(f"http://127.0.0.1:{ports[port]}{path}").status_code == 401
        assert plain.get(f"http://127.0.0.1:{ports['STORE_MASTER_PORT']}/dir/assign").status_code == 400
        with pytest.raises(requests.exceptions.SSLError, match="certificate required"):
            plain.get(f"https://127.0.0.1:{ports['STORE_MASTER_PORT']}/dir/assign", verify=False)
    for name in ("STORE_PORT", "STORE_MASTER_PORT", "STORE_VOLUME_PORT", "STORE_FILER_PORT"):
        with (
            grpc.insecure_channel(f"127.0.0.1:{ports[name] + 10_000}") as channel,
            pytest.raises(grpc.FutureTimeoutError),
        ):
            grpc.channel_ready_future(channel).result(timeout=0.5)


def test_clients_look_at_the_certificate(worked: Worked, monkeypatch: pytest.MonkeyPatch):
    clone = worked.servers.clone
    prefect = {PREFECT_API_URL: clone["PREFECT_API_URL"], PREFECT_API_AUTH_STRING: clone["PREFECT_API_AUTH_STRING"]}
    for name, value in clone.items():
        if not name.startswith("PREFECT"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert mlflow.MlflowClient(clone["MLFLOW_TRACKING_URI"]).search_registered_models()
    assert boto3.client("s3").list_buckets()["Buckets"][0]["Name"] == "thaw"
    for name in ("MLFLOW_TRACKING_SERVER_CERT_PATH", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name)
    with pytest.raises(MlflowException, match="CERTIFICATE_VERIFY_FAILED"):
        mlflow.MlflowClient(clone["MLFLOW_TRACKING_URI"]).search_registered_models()
    with pytest.raises(SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        boto3.client("s3").list_buckets()
    trusting = prefect | {PREFECT_API_SSL_CERT_FILE: clone["PREFECT_API_SSL_CERT_FILE"]}
    with temporary_settings(trusting), get_client(sync_client=True) as client:
        assert client.read_work_pools()
    with (
        temporary_settings(prefect),
        get_client(sync_client=True) as client,
        pytest.raises(httpx.ConnectError) as error,
    ):
        client.read_work_pools()
    assert "CERTIFICATE_VERIFY_FAILED" in str(error.value)


def test_what_dies_is_started_again(worked: Worked):
    [proxy] = [process for process in worked.servers.family if process.name() == "caddy"]
    proxy.kill()
    health = f"http://127.0.0.1:{worked.servers.ports['PROXY_HEALTH_PORT']}/health"

    def answers() -> bool:
        try:
            return requests.get(health, timeout=5).ok
        except requests.ConnectionError:
            return False

    until(lambda: not lives(proxy.pid) and answers(), 30, 0.1)


def test_a_folder_has_one_installation_at_a_time(worked: Worked):
    said = worked.first.run("env", f"THAW_TEAM={worked.servers.state}", "thaw", "team", status=2)
    assert "is running already" in said


def _filled(path: str) -> str:
    return re.sub(r"[<{][^>}]*[>}]", "x", path)


async def _refused(url: str) -> None:
    """Neither a plain connection, nor one without a token, nor one with a wrong token gets anything."""
    with pytest.raises(InvalidStatus, match="403"):
        await connect(url)
    for message in ({"type": "auth"}, {"type": "auth", "token": "thaw:wrong"}):
        async with connect(url, subprotocols=["prefect"]) as socket:
            await socket.send(json.dumps(message))
            with pytest.raises(ConnectionClosed, match="1008"):
                await asyncio.wait_for(socket.recv(), 10)
