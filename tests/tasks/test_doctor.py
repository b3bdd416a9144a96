"""Every fault that `thaw doctor` looks for is planted once and found, in real stores, repositories and processes."""

import fcntl
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from threading import Event
from uuid import uuid4

import pytest
import yaml
from filelock import FileLock
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from components.tracking.condition import Condition, condition
from tasks import machine_checks, project_checks, service_checks
from tasks.finding import Finding, Status, fault, found, ok, warning, worst
from tasks.lost_runs import NOTES
from tasks.server import own_server
from tests.answers import answering, dead_port
from tests.conftest import PROJECT
from tests.tasks.toy import toy_project

OK, WARNING, FAULT = Status.OK, Status.WARNING, Status.FAULT


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with nothing wrong: quick stages, its data, a remote that has them, all of it committed."""
    folder = toy_project(tmp_path / "toy")
    shutil.copy(PROJECT / "data.dvc", folder)
    shutil.copytree(PROJECT / "infra/embedded-data", folder / "infra/embedded-data")
    shutil.copytree(PROJECT / "data", folder / "data")
    (folder / ".gitignore").write_text("data/\n")
    run(folder, "git", "add", "--all")
    who = ("-c", "user.name=Tester", "-c", "user.email=tester@example.org", "-c", "commit.gpgsign=false")
    run(folder, "git", *who, "commit", "--quiet", "--message", "as it is")
    return folder


def run(folder: Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, check=True)


def set_remote(folder: Path, url: str) -> None:
    run(folder, sys.executable, "-m", "dvc", "remote", "modify", "embedded", "url", url)


def change(folder: Path, section: str, **values: object) -> None:
    settings = yaml.safe_load((folder / "params.yaml").read_text())
    settings[section] |= values
    (folder / "params.yaml").write_text(yaml.safe_dump(settings))


# The machine


@pytest.mark.parametrize("version", [(3, 10, 9), (3, 14, 0), (2, 7, 18)])
def test_another_python_is_a_fault(version: tuple[int, ...]) -> None:
    assert machine_checks.python(version).status is FAULT
    assert machine_checks.python().status is OK


def test_a_package_that_does_not_fit_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    assert machine_checks.packages().status is OK
    record = tmp_path / "mlflow-2.9.1.dist-info/METADATA"
    record.parent.mkdir()
    record.write_text("Metadata-Version: 2.1\nName: mlflow\nVersion: 2.9.1\n")
    said = machine_checks.packages()
    assert said == fault("mlflow>=3.17 is needed and 2.9.1 installed.", f"make setup STACK={machine_checks.stack()}")


def test_a_package_of_another_version_than_was_tested_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    record = tmp_path / "tqdm-99.0.dist-info/METADATA"
    record.parent.mkdir()
    record.write_text("Metadata-Version: 2.1\nName: TQDM\nVersion: 99.0\n")
    said = machine_checks.packages()
    assert said.status is WARNING
    assert said.message.startswith("not the versions that were tested together: tqdm 99.0 (tested: ")


def test_a_missing_package_is_a_fault(tmp_path: Path) -> None:
    wanted = (PROJECT / "pyproject.toml").read_text().replace('"tqdm>=', '"no-such-package>=')
    (tmp_path / "pyproject.toml").write_text(wanted)
    said = machine_checks.packages(project=tmp_path / "pyproject.toml")
    assert (said.status, said.message) == (FAULT, "no-such-package is missing.")


def test_the_program_of_another_clone_is_a_warning(tmp_path: Path) -> None:
    assert machine_checks.program(PROJECT).status is OK
    (tmp_path / "tasks").mkdir()
    assert machine_checks.program(tmp_path).message == f"{PROJECT} runs, and DVC tracks the code of {tmp_path}."


@pytest.mark.parametrize(
    ("cards", "built_for", "hidden", "status", "told"),
    [
        ([], None, None, OK, "no GPU"),
        ([], "13.0", None, WARNING, "finds no GPU"),
        ([("H100", "580.1")], None, None, WARNING, "PyTorch is built for CPUs"),
        ([("H100", "580.1")], "13.0", "", WARNING, "CUDA_VISIBLE_DEVICES= hides H100"),
        ([("H100", "580.1")], "13.0", "-1", WARNING, "CUDA_VISIBLE_DEVICES=-1 hides H100"),
        ([("H100", "450.2")], "13.0", None, FAULT, "built for CUDA 13.0, cannot use H100 with driver 450.2"),
        ([("H100", "450.2")], "13.0", "0,1", FAULT, "built for CUDA 13.0, cannot use H100 with driver 450.2"),
    ],
)
def test_a_gpu_that_pytorch_does_not_find_is_explained(
    cards: list[tuple[str, str]], built_for: str | None, hidden: str | None, status: Status, told: str
) -> None:
    said = machine_checks._without_gpu(cards, built_for, hidden)
    assert said.status is status
    assert told in said.message


def test_a_full_disk_and_little_memory_are_faults(tmp_path: Path) -> None:
    assert machine_checks.disk([tmp_path, tmp_path / "none"], 1e-6).status is OK
    said = machine_checks.disk([tmp_path], 1e9)
    assert said.status is FAULT
    assert said.message.startswith(f"{tmp_path} has ")
    assert (machine_checks.memory(1e-6).status, machine_checks.memory(1e9).status) == (OK, FAULT)


def test_little_shared_memory_is_a_warning_and_none_a_fault(tmp_path: Path) -> None:
    assert machine_checks.shared_memory(tmp_path, 1e-6).status is OK
    assert machine_checks.shared_memory(tmp_path, 1e9).status is WARNING
    assert machine_checks.shared_memory(tmp_path / "none").status is FAULT


def test_a_port_in_use_is_a_warning_that_names_who_has_it() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        said = machine_checks.ports({dead_port(): "thaw serve --port {}", port: "mlflow ui --port {}"})
    assert said.status is WARNING
    assert said.message.startswith(f"port {port} is taken by ")
    assert f"process {os.getpid()}" in said.message
    assert said.cure == f"mlflow ui --port {port + 1}"
    assert machine_checks.ports({port: "thaw serve --port {}"}).status is OK


# The project


def test_a_project_with_nothing_wrong_is_found_to_be_so(project: Path) -> None:
    for check in (project_checks.project, project_checks.settings, project_checks.git, project_checks.data,
                  project_checks.remotes, project_checks.leftovers, service_checks.mlflow):  # fmt: skip
        assert check(project).status is OK, check(project)
    assert not (project / "mlflow.db").exists()


def test_a_folder_that_is_no_project_is_a_fault(tmp_path: Path) -> None:
    assert project_checks.project(tmp_path).message.endswith("it has no .dvc and no dvc.yaml and no params.yaml.")


def test_settings_that_are_not_valid_are_a_fault(project: Path) -> None:
    change(project, "train", steps="many")
    said = found(lambda: project_checks.settings(project), 10)
    assert said.status is FAULT
    assert "train.steps = 'many'" in said.message


def test_no_git_repository_is_a_fault_unless_dvc_does_without(project: Path) -> None:
    shutil.rmtree(project / ".git")
    assert project_checks.git(project) == fault(f"{project} is no git repository, and DVC needs one.", "git init")
    (project / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    assert project_checks.git(project).status is WARNING


def test_what_stages_depend_on_and_nobody_committed_is_a_warning(project: Path) -> None:
    (project / "notes.txt").write_text("no stage reads this")
    (project / "experiments/mine").mkdir(parents=True)
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(project / name, project / "experiments/mine")
    assert project_checks.git(project).status is OK
    (project / "train.sh").write_text("echo changed\n")
    change(project, "train", steps=7)
    said = project_checks.git(project)
    assert said.status is WARNING
    assert said.message.startswith("not committed, though stages depend on it: params.yaml, train.sh;")


def test_a_pipeline_that_dvc_cannot_read_is_a_fault_that_names_it(project: Path) -> None:
    (project / "dvc.yaml").write_text("stages: [")
    for check in (project_checks.git, project_checks.data):
        said = found(lambda check=check: check(project), 10)
        assert said.status is FAULT
        assert said.message.startswith("DVC: ")
        assert "dvc.yaml" in said.message


def test_data_that_are_not_there_or_not_whole_are_a_fault(project: Path) -> None:
    file = next((project / "data/skills").iterdir())
    file.write_bytes(file.read_bytes()[:-9])
    said = project_checks.data(project)
    assert (said.status, said.cure) == (FAULT, "dvc checkout data.dvc")
    shutil.rmtree(project / "data")
    assert project_checks.data(project) == fault("data is not there.", "dvc pull data.dvc")
    run(project, sys.executable, "-m", "dvc", "pull", "--quiet", "data.dvc")
    assert project_checks.data(project).status is OK


def test_pinned_data_that_the_task_does_not_need_are_a_warning_and_unpinned_ones_it_needs_a_fault(
    project: Path, tmp_path: Path
) -> None:
    shutil.rmtree(project / "data")
    change(project, "task", path=str(tmp_path / "elsewhere"))
    said = project_checks.data(project)
    assert (said.status, said.message) == (FAULT, f"task.path = {tmp_path}/elsewhere is not there.")
    (tmp_path / "elsewhere").mkdir()
    assert project_checks.data(project) == warning("data is not there.", "dvc pull data.dvc")


def test_a_remote_that_is_not_there_is_a_fault(project: Path) -> None:
    shutil.rmtree(project / "infra/embedded-data")
    said = project_checks.remotes(project)
    assert said.status is FAULT
    assert said.message == f"DVC's remote embedded, {project}/infra/embedded-data, is not there."


def test_a_remote_that_does_not_answer_or_refuses_is_a_fault_without_its_password(project: Path) -> None:
    set_remote(project, f"http://me:secret@127.0.0.1:{(port := dead_port())}/thaw")
    said = project_checks.remotes(project)
    assert said.status is FAULT
    assert said.message.startswith(f"DVC's remote embedded, http://127.0.0.1:{port}/thaw, does not answer (Connect")
    for status, told in ((401, "refuses the credentials (401)"), (403, "(403)"), (500, "fails (500)")):
        with answering(status) as port:
            set_remote(project, f"http://me:secret@127.0.0.1:{port}/thaw")
            said = project_checks.remotes(project)
        assert said.status is FAULT
        assert told in said.message
        assert "secret" not in said.message
    with answering(404) as port:  # as a store answers that has nothing there yet
        set_remote(project, f"http://127.0.0.1:{port}/thaw")
        assert project_checks.remotes(project).status is OK


def test_a_remote_whose_package_is_missing_is_a_fault(project: Path) -> None:
    set_remote(project, "webhdfs://host/thaw")
    said = project_checks.remotes(project)
    assert (said.status, said.cure) == (FAULT, "pip install dvc-webhdfs")


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def note_lock(project: Path, pid: int, age: float) -> Path:
    """A file of DVC's that says of a process that it writes, `age` seconds after now."""
    path = project / ".dvc/tmp/rwlock"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"write": {"/x": {"pid": pid, "cmd": "dvc repro"}}, "read": {}}))
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime + age))
    return path


def test_a_lock_of_a_dead_process_is_a_warning(project: Path, dead_pid: int) -> None:
    path = note_lock(project, dead_pid, 0)
    said = project_checks.leftovers(project)
    assert (said.status, said.cure) == (WARNING, f"rm {path}")
    assert f"a killed `dvc repro` (process {dead_pid})" in said.message


def test_a_lock_whose_number_another_process_has_now_is_a_fault_and_dvc_waits_for_it(project: Path) -> None:
    path = note_lock(project, os.getpid(), 0)
    assert project_checks.leftovers(project).status is OK
    note_lock(project, os.getpid(), -1e6)
    assert project_checks.leftovers(project).status is FAULT
    path.write_text('{"write": {"/x"')
    assert project_checks.leftovers(project) == fault(f"{path} is damaged, and DVC refuses to work.", f"rm {path}")


def test_a_stage_that_outlived_its_flow_is_a_warning(project: Path) -> None:
    note = project / ".dvc/tmp/thaw-stage-.-train@grpo-0"
    note.parent.mkdir(exist_ok=True)
    with note.open("w") as held, FileLock(f"{note}.lock"):
        held.write("4711")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        assert project_checks.leftovers(project).status is OK, "its flow lives"
    with note.open("a") as held:
        assert project_checks.leftovers(project).status is OK, "nobody holds it"
        fcntl.flock(held, fcntl.LOCK_EX)
        said = project_checks.leftovers(project)
    assert (said.status, said.cure) == (WARNING, "kill -KILL -- -4711")
    assert "stage .-train@grpo-0 still runs" in said.message


# Services


def test_an_mlflow_server_that_does_not_answer_or_refuses_is_a_fault(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_checks, "ANSWER_SECONDS", 0.1)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{(port := dead_port())}")
    said = service_checks.mlflow(project)
    assert (said.status, said.cure) == (FAULT, "unset MLFLOW_TRACKING_URI")
    assert f"no MLflow server answers at http://127.0.0.1:{port};" in said.message
    for status, told in ((401, "refuses the credentials (401)"), (500, "fails (500)"), (200, "is no MLflow server")):
        with answering(status, "<html>") as port:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{port}")
            said = service_checks.mlflow(project)
        assert said.status is FAULT
        assert told in said.message
        assert ("MLFLOW_TRACKING_PASSWORD" in said.cure) == (status == 401)
        assert "secret" not in said.message
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://me:secret@127.0.0.1:{(port := dead_port())}/mlflow")
    assert f"PostgreSQL at postgresql://127.0.0.1:{port}/mlflow does not" in service_checks.mlflow(project).message


def test_a_store_of_an_older_or_newer_mlflow_is_told_and_left_as_it_is(
    project: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_database, project / "mlflow.db")
    assert service_checks.mlflow(project).status is OK
    planted = [(older_revision(), Condition.OLDER, WARNING), ("0123456789ab", Condition.NEWER, FAULT)]
    for revision, state, status in planted:
        with sqlite3.connect(project / "mlflow.db") as database:
            database.execute("UPDATE alembic_version SET version_num = ?", [revision])
        assert condition(project) is state
        assert service_checks.mlflow(project).status is status
        with sqlite3.connect(project / "mlflow.db") as database:
            assert database.execute("SELECT version_num FROM alembic_version").fetchall() == [(revision,)]
    with sqlite3.connect(project / "mlflow.db") as database:
        database.execute("DROP TABLE alembic_version")
    assert "is none of MLflow's" in service_checks.mlflow(project).message
    (project / "mlflow.db").write_text("no database" * 1000)
    assert "file is not a database" in service_checks.mlflow(project).message


def test_a_store_that_an_older_mlflow_made_is_upgraded_by_the_command_that_is_named(
    project: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alembic import command
    from mlflow.db import commands
    from mlflow.store.db import utils

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_database, project / "mlflow.db")
    uri = f"sqlite:///{project}/mlflow.db"
    command.downgrade(utils._get_alembic_config(uri), older_revision())
    said = service_checks.mlflow(project)
    assert said.status is WARNING
    assert said.cure == f"mlflow db upgrade {uri}"
    commands.main(said.cure.split()[2:], standalone_mode=False)
    assert service_checks.mlflow(project).status is OK


def older_revision() -> str:
    """Of MLflow's tables, the last but one."""
    import mlflow
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(Path(mlflow.__file__).parent / "store/db_migrations"))
    newest = scripts.get_revision("head")
    assert newest is not None
    assert isinstance(newest.down_revision, str)
    return newest.down_revision


def test_a_prefect_server_that_does_not_answer_is_a_fault() -> None:
    with temporary_settings({PREFECT_API_URL: f"http://me:secret@127.0.0.1:{(port := dead_port())}/api"}):
        said = service_checks.prefect()
    assert (said.status, said.cure) == (FAULT, "unset PREFECT_API_URL; prefect config unset --yes PREFECT_API_URL")
    assert f"no Prefect server answers at http://127.0.0.1:{port}/api;" in said.message
    with temporary_settings({PREFECT_API_URL: None}):
        assert service_checks.prefect().status is OK


@pytest.fixture
def prefect_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    with temporary_settings({PREFECT_HOME: tmp_path / "prefect"}):
        yield tmp_path / "prefect"


@pytest.mark.slow
def test_a_wrong_password_of_prefect_is_a_fault(prefect_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_AUTH_STRING

    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "admin:right")
    with own_server() as (url, _):
        for password, status in (("right", OK), ("wrong", FAULT)):
            with temporary_settings({PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: f"admin:{password}"}):
                said = service_checks.prefect()
            assert said.status is status
        assert "refuses the credentials (401)" in said.message
        assert said.cure == "export PREFECT_API_AUTH_STRING=USER:PASSWORD"
    assert (prefect_home / "thaw-server.log").exists()


def test_flow_runs_that_lost_their_process_are_a_warning(prefect_home: Path) -> None:
    assert service_checks.lost_runs().status is OK
    note = prefect_home / NOTES / str(uuid4())
    note.parent.mkdir(parents=True)
    with note.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert service_checks.lost_runs().status is OK
    assert service_checks.lost_runs().status is WARNING
    assert note.exists()


def test_a_vllm_server_that_does_not_answer_is_a_fault() -> None:
    assert service_checks.vllm([]).status is OK
    said = service_checks.vllm([f"http://127.0.0.1:{(port := dead_port())}"])
    assert said.status is FAULT
    assert f"no vLLM server answers at http://127.0.0.1:{port};" in said.message


# Putting findings together


def test_the_worst_finding_speaks() -> None:
    assert worst([ok("a."), warning("b.", "x"), warning("c.", "x"), ok("d.")]) == warning("b. c.", "x")
    assert worst([ok("a."), warning("b.", "x"), fault("c.", "y"), fault("d.", "z")]) == fault("c. d.", "y; z")


def test_a_check_that_breaks_or_hangs_is_a_fault() -> None:
    def breaks() -> Finding:
        raise RuntimeError("half\nof it")

    def lacks() -> Finding:
        return ok(str(import_module("no_such_package")))

    def hangs() -> Finding:
        Event().wait(3)
        return ok("late.")

    assert found(breaks, 5) == fault("this cannot be looked at: RuntimeError: half of it.", "make setup")
    assert found(lacks, 5).message == "a package is missing or broken: No module named 'no_such_package'."
    assert found(hangs, 0.1).message == "no result within 0.1 seconds."
