"""Services that do not answer, refuse, fail, or are something else: one sentence with the address, no secrets in it."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_DATABASE_CONNECTION_URL, temporary_settings

from components.errors import TemporaryError
from components.tracking import store
from tasks.inputs import make_base, make_data
from tasks.server import told_when_gone
from tests.answers import answering, dead_port
from tests.conftest import SMALL, small_settings
from tests.flows.conftest import Said, Thaw
from tests.tasks.toy import toy_project

TASK = f"task.path={small_settings().task.path}"
SETTINGS = [part for change in [*SMALL, TASK] for part in ("--set", change)]
GIVEN = ["--data", "made/data", "--base", "made/base", *SETTINGS]
PROBE = ["probe", "--out", "out", *GIVEN]
TRAIN = ["train", "--arm", "grpo", "--out", "out", *GIVEN]
EVALUATE = ["evaluate", "made/base", "--data", "made/data", "--out", "out", *SETTINGS]
REGISTERED = ["evaluate", "thaw-skills/1", *EVALUATE[2:]]
VERSION = "thaw-skills@best"
READERS = [["compare"], ["promote", VERSION], ["promote", "thaw-skills", "--undo"], ["lineage", VERSION], REGISTERED]

NO_MLFLOW = "what answers at {} is no MLflow server, or a sign-on page in front of it; correct MLFLOW_TRACKING_URI."
NO_PREFECT = "what answers at {}/api is no API of Prefect; correct PREFECT_API_URL, it ends in /api."
ODD = {401: "", 403: "", 500: "", 404: "", 200: "<html>Welcome</html>"}  # what servers answer, by status


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    make_data(small_settings(), folder / "data")
    make_base(small_settings(), folder / "base")
    return folder


@pytest.fixture
def project(tmp_path: Path, made: Path) -> Path:
    """A project of quick stages in which nobody has trained yet, with data and a base model."""
    folder = toy_project(tmp_path / "toy")
    (folder / "made").symlink_to(made)
    return folder


@pytest.fixture
def trained(project: Path, empty_database: Path) -> Path:
    """A project that has a store of MLflow's."""
    shutil.copy(empty_database, project / "mlflow.db")
    return project


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.tracking.store.FIRST_ANSWER", 0.1)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if ".dvc" not in path.parts}


def sentence(said: Said, status: int = 2) -> str:
    """The one sentence of a refusal, which gives no secret away."""
    assert said.status == status, said
    assert "Traceback" not in said.err
    assert said.out == ""
    told = said.err.splitlines()[-1]
    assert told.startswith("error: ")
    assert said.err.count("error: ") == 1
    assert "secret" not in said.err
    return told


# A store of MLflow's


@pytest.mark.parametrize("command", [*READERS, ["evaluate-registry"]], ids=" ".join)
def test_where_nobody_has_trained_who_reads_says_so_and_makes_no_store(
    project: Path, thaw: Thaw, command: list[str]
) -> None:
    before = files(project)
    assert sentence(thaw(project, *command)) == (
        f"error: nothing was trained here yet, there is no {project}/mlflow.db; `thaw sweep` or `thaw train` begins."
    )
    assert files(project) == before


def test_outside_of_a_project_too(tmp_path: Path, thaw: Thaw) -> None:
    for command in (["compare"], ["lineage", VERSION]):
        assert f"there is no {tmp_path}/mlflow.db; `thaw sweep`" in sentence(thaw(tmp_path, *command))
    assert list(tmp_path.iterdir()) == []


def test_thaw_gc_where_nobody_has_trained_has_nothing_of_mlflow(project: Path, thaw: Thaw) -> None:
    before = files(project)
    said = thaw(project, "gc", "--yes")
    assert said.status == 0
    assert said.out.splitlines() == [
        f"nothing was trained here yet, there is no {project}/mlflow.db; `thaw sweep` or `thaw train` begins.",
        "nothing here is unused",
    ]
    assert files(project) == before


COMMANDS = [*READERS, ["gc"], ["evaluate-registry"], PROBE, TRAIN, ["sweep"]]


@pytest.mark.usefixtures("mlflow")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[:2]))
@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("http://{}127.0.0.1:{}", "no MLflow server answers at {}; start it, correct MLFLOW_TRACKING_URI"),
        ("postgresql://{}127.0.0.1:{}/mlflow", "PostgreSQL at {} does not answer; start it, or correct MLFLOW_TR"),
    ],
    ids=["server", "PostgreSQL"],
)
def test_a_store_that_does_not_answer_is_named_before_any_work(
    project: Path, thaw: Thaw, monkeypatch: pytest.MonkeyPatch, command: list[str], uri: str, told: str
) -> None:
    port = dead_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format("me:secret@", port))
    before = files(project)
    assert told.format(uri.format("", port)) in sentence(thaw(project, *command))
    assert files(project) == before


def test_an_evaluation_that_belongs_to_a_version_is_not_kept_in_silence_in_files_alone(
    project: Path, thaw: Thaw, monkeypatch: pytest.MonkeyPatch, made: Path
) -> None:
    monkeypatch.setattr("components.tracking.store.FIRST_ANSWER", 0.1)
    shutil.copytree(made / "base", project / "run/final")
    (project / "run/train.json").write_text('{"model_name": "thaw-skills", "model_version": 1}')
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{dead_port()}")
    assert "no MLflow server answers" in sentence(thaw(project, "evaluate", "run/final", *EVALUATE[2:]))


# Prefect's API

PREFECT = [["sweep"], ["evaluate-registry"], ["serve"]]


@pytest.mark.parametrize("command", PREFECT, ids=" ".join)
@pytest.mark.parametrize(
    ("setting", "uri", "told"),
    [
        (
            PREFECT_API_URL,
            "http://{}127.0.0.1:{}/api",
            "no Prefect server answers at {}; start it, correct PREFECT_API_URL, or",
        ),
        (
            PREFECT_SERVER_DATABASE_CONNECTION_URL,
            "postgresql+asyncpg://{}127.0.0.1:{}/prefect",
            "PostgreSQL at {} does not answer; start it, or correct PREFECT_SERVER_DATABASE_CONNECTION_URL",
        ),
    ],
    ids=["server", "PostgreSQL"],
)
def test_a_prefect_server_or_its_database_that_does_not_answer_is_named(
    trained: Path, thaw: Thaw, command: list[str], setting: Any, uri: str, told: str
) -> None:
    port = dead_port()
    with temporary_settings({PREFECT_API_URL: None} | {setting: uri.format("me:secret@", port)}):
        assert told.format(uri.format("", port)) in sentence(thaw(trained, *command))


def test_a_prefect_server_that_goes_away_while_a_flow_runs_is_told_and_the_flow_may_be_tried_again() -> None:
    url = f"http://me:secret@127.0.0.1:{(port := dead_port())}/api"
    told = rf"^the Prefect server at http://127\.0\.0\.1:{port}/api has gone away"
    with pytest.raises(TemporaryError, match=told), told_when_gone(url):
        httpx.get(url)
    with pytest.raises(TemporaryError, match=told), temporary_settings({PREFECT_API_URL: url}), told_when_gone(url):
        flow(lambda: None, name="nothing")()
    with pytest.raises(RuntimeError, match="another"), told_when_gone(url):
        raise RuntimeError("another")


# Servers of vLLM


def served(port: int) -> list[str]:
    return ["--set", "rollout.engine=vllm", "--set", f"rollout.placement=http://127.0.0.1:{port}"]


@pytest.mark.parametrize("command", [PROBE, TRAIN, EVALUATE], ids=lambda command: command[0])
def test_a_vllm_server_that_does_not_answer_is_named_and_may_be_tried_again(
    trained: Path, thaw: Thaw, command: list[str]
) -> None:
    told = sentence(thaw(trained, *command, *served(port := dead_port())), 75)
    assert f"no vLLM server answers at http://127.0.0.1:{port}; start it, or correct rollout.placement." in told


@pytest.mark.parametrize("command", [PROBE, TRAIN], ids=lambda command: command[0])
def test_the_store_is_opened_once(
    trained: Path, thaw: Thaw, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    """The command ends behind it, at a server of vLLM that is not there."""
    opened, client = [], store.MlflowClient
    monkeypatch.setattr(store, "MlflowClient", lambda **options: opened.append(1) or client(**options))
    sentence(thaw(trained, *command, *served(dead_port())), 75)
    assert len(opened) == 1


# Odd answers


@contextmanager
def of_mlflow(port: int) -> Iterator[list[list[str]]]:
    """Commands that ask a server of MLflow's there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{port}")
        yield [["compare"], TRAIN, ["sweep"]]


@contextmanager
def of_prefect(port: int) -> Iterator[list[list[str]]]:
    """Commands that ask a server of Prefect's there."""
    with temporary_settings({PREFECT_API_URL: f"http://me:secret@127.0.0.1:{port}/api"}):
        yield PREFECT


@contextmanager
def of_vllm(port: int) -> Iterator[list[list[str]]]:
    """Commands that ask a server of vLLM's there."""
    yield [[*command, *served(port)] for command in (EVALUATE, PROBE)]


@pytest.mark.usefixtures("mlflow")
@pytest.mark.parametrize(
    ("service", "answer", "told", "ends"),
    [
        (of_mlflow, 401, "MLflow at {} refuses the credentials (401); set MLFLOW_TRACKING_USERNAME and", 2),
        (of_mlflow, 403, "MLflow at {} refuses the credentials (403); set MLFLOW_TRACKING_USERNAME and", 2),
        (of_mlflow, 404, NO_MLFLOW, 2),
        (of_mlflow, 500, "MLflow at {} fails (500); its log says why: mend it, and try again.", 2),
        (of_mlflow, 200, NO_MLFLOW, 2),
        (of_prefect, 401, "server at {}/api refuses the credentials (401); set PREFECT_API_AUTH_STRING to USER:PA", 2),
        (of_prefect, 403, "server at {}/api refuses the credentials (403); set PREFECT_API_AUTH_STRING to USER:PA", 2),
        (of_prefect, 404, NO_PREFECT, 2),
        (of_prefect, 500, "the Prefect server at {}/api fails (500); its log says why: mend it, and try again.", 2),
        (of_prefect, 200, NO_PREFECT, 2),
        (of_vllm, 401, "the vLLM server at {} asks for a key (401), and VLLM_API_KEY is not it: set it to the", 2),
        (of_vllm, 403, "the vLLM server at {} asks for a key (403), and VLLM_API_KEY is not it: set it to the", 2),
        (of_vllm, 404, "the vLLM server at {} has no /v1/models: start it with VLLM_SERVER_DEV_MODE=1 and", 2),
        (of_vllm, 500, "the vLLM server at {} failed (500)", 75),
        (of_vllm, 200, "what answers at {} is no vLLM server; correct rollout.placement.", 2),
    ],
)
def test_what_a_server_answers_is_told(
    trained: Path,
    thaw: Thaw,
    service: Callable[[int], AbstractContextManager[list[list[str]]]],
    answer: int,
    told: str,
    ends: int,
) -> None:
    with answering(answer, ODD[answer]) as port, service(port) as commands:
        for command in commands:
            assert told.format(f"http://127.0.0.1:{port}") in sentence(thaw(trained, *command), ends)
