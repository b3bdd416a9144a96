"""`thaw doctor`: what it shows, in which form, how it ends, and that it does where packages are broken."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from tests.answers import dead_port
from tests.conftest import PROJECT
from tests.flows.conftest import Said, Thaw
from tests.tasks.toy import toy_project

CHECKS = {
    "python", "packages", "program", "pytorch", "gpu", "disk", "memory", "shared memory", "ports", "project",
    "settings", "git", "data", "dvc remotes", "leftovers", "vllm", "mlflow", "prefect", "lost runs",
}  # fmt: skip
OF_A_PROJECT = {"settings", "git", "data", "dvc remotes", "leftovers", "vllm"}


def rows(said: Said) -> dict[str, dict[str, str]]:
    found = json.loads(said.out)
    assert all(list(row) == ["check", "status", "message", "cure"] for row in found)
    assert all(row["message"].endswith((".", ")")) for row in found)
    assert said.status == (1 if any(row["status"] == "fault" for row in found) else 0)
    return {row["check"]: row for row in found}


def faults(said: Said) -> set[str]:
    return {name for name, row in rows(said).items() if row["status"] == "fault"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with its data and nothing else that stages need."""
    folder = toy_project(tmp_path / "toy")
    shutil.copytree(PROJECT / "infra/embedded-data", folder / "infra/embedded-data")
    shutil.copytree(PROJECT / "data", folder / "data")
    shutil.copy(PROJECT / "data.dvc", folder)
    return folder


def test_without_a_fault_it_ends_well_and_with_one_it_does_not(project: Path, thaw: Thaw) -> None:
    before = set(project.iterdir())
    said = thaw(project, "doctor", "--json", "--memory", "0")
    assert set(rows(said)) == CHECKS
    assert faults(said) == set()
    assert rows(said)["git"]["cure"] == "git add --all && git commit"
    shown = thaw(project, "doctor", "--disk", "1e9", "--memory", "0")
    assert (shown.status, shown.err) == (1, "")
    lines = shown.out.splitlines()
    assert lines[0].split() == ["check", "status", "found,", "and", "the", "cure"]
    assert any(line.startswith("python         ok       Python 3.") for line in lines)
    assert any(line.startswith("disk           fault    ") for line in lines)
    assert "thaw gc" in shown.out
    assert lines[-1] == "faults: disk"
    assert set(project.iterdir()) == before


def test_all_faults_are_found_at_once(project: Path, thaw: Thaw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.service_checks.ANSWER_SECONDS", 0.1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{dead_port()}")
    for name in (".git", "data", "infra"):
        shutil.rmtree(project / name)
    (project / ".dvc/config").write_text(
        f"[core]\n    no_scm = true\n['remote \"away\"']\n    url = http://me:secret@127.0.0.1:{dead_port()}/x\n"
    )
    (project / ".dvc/tmp").mkdir()
    (project / ".dvc/tmp/rwlock").write_text("{")
    text = (project / "params.yaml").read_text().replace("engine: transformers", "engine: vllm")
    placed = text.replace("placement: colocated", f"placement: http://127.0.0.1:{dead_port()}")
    (project / "params.yaml").write_text(placed)
    with (
        socket.socket() as listener,
        temporary_settings({PREFECT_API_URL: f"http://me:secret@[::1]:{dead_port()}/api"}),
    ):
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        said = thaw(project, "doctor", "--json", "--disk", "1e9", "--memory", "1e9", "--port", port)
    assert faults(said) == {"disk", "memory", "data", "dvc remotes", "leftovers", "vllm", "mlflow", "prefect"}
    assert {name for name, row in rows(said).items() if row["status"] == "warning"} >= {"ports", "git"}
    assert "secret" not in said.out
    assert said.err == ""


def test_outside_of_a_project_only_the_machine_and_the_services_are_looked_at(tmp_path: Path, thaw: Thaw) -> None:
    said = thaw(tmp_path, "doctor", "--json", "--memory", "0")
    assert set(rows(said)) == CHECKS - OF_A_PROJECT
    assert faults(said) == {"project"}
    assert list(tmp_path.iterdir()) == []


def test_it_works_where_half_of_the_packages_are_missing_or_broken(project: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for name, line in {
        "torch": "raise OSError('libtorch_cpu.so: undefined symbol')",
        "mlflow": "raise ImportError('no module named entities')",
        "prefect": "import no_such_package",
        "dvc": "raise SystemExit(1)",
        "httpx": "raise AttributeError('half of it')",
        "packaging": "raise ImportError('gone')",
    }.items():
        (broken / f"{name}.py").write_text(line + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "doctor", "--json", "--memory", "0"],
        cwd=project, env=os.environ | {"PYTHONPATH": f"{broken}:{PROJECT}"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    said = Said(done.returncode, done.stdout, done.stderr)
    assert set(rows(said)) == CHECKS
    assert faults(said) >= {
        "pytorch",
        "gpu",
        "packages",
        "git",
        "data",
        "dvc remotes",
        "mlflow",
        "prefect",
        "lost runs",
    }
    assert not faults(said) & {"python", "disk", "ports", "project", "settings", "leftovers"}
    assert rows(said)["pytorch"]["message"] == "PyTorch is broken: OSError: libtorch_cpu.so: undefined symbol."
    assert rows(said)["mlflow"]["message"] == "a package is missing or broken: no module named entities."
    assert said.err == ""
