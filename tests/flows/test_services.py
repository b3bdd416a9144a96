"""Services that do not answer, refuse, fail, or are something else: one sentence with the address, no secrets in it."""

import shutil
from pathlib import Path

import httpx
import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_DATABASE_CONNECTION_URL, temporary_settings

from components.errors import TemporaryError
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
def test_an_mlflow_server_that_does_not_answer_is_named_before_any_work(
    project: Path, thaw: Thaw, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{(port := dead_port())}")
    before = files(project)
    told = sentence(thaw(project, *command))
    assert f"no MLflow server answers at http://127.0.0.1:{port}; start it, correct MLFLOW_TRACKING_URI" in told
    assert files(project) == before


@pytest.mark.usefixtures("mlflow")
@pytest.mark.parametrize(
    ("status", "told"),
    [
        (401, "MLflow at {} refuses the credentials (401); set MLFLOW_TRACKING_USERNAME and"),
        (403, "MLflow at {} refuses the credentials (403); set MLFLOW_TRACKING_USERNAME and"),
        (404, "what answers at {} is no MLflow server, or a sign-on page in front of it; correct MLFLOW_TRACKING_URI."),
        (500, "MLflow at {} fails (500); its log says why: mend it, and try again."),
        (200, "what answers at {} is no MLflow server, or a sign-on page in front of it; correct MLFLOW_TRACKING_URI."),
    ],
)
def test_what_an_mlflow_server_answers_is_told(
    project: Path, thaw: Thaw, monkeypatch: pytest.MonkeyPatch, status: int, told: str
) -> None:
    with answering(status, ODD[status]) as port:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{port}")
        for command in (["compare"], TRAIN, ["sweep"]):
            assert told.format(f"http://127.0.0.1:{port}") in sentence(thaw(project, *command))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[:2]))
def test_a_postgresql_that_does_not_answer_is_named(
    project: Path, thaw: Thaw, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://me:secret@127.0.0.1:{(port := dead_port())}/mlflow")
    before = files(project)
    told = sentence(thaw(project, *command))
    assert f"PostgreSQL at postgresql://127.0.0.1:{port}/mlflow does not answer; start it, or correct MLFLOW_TR" in told
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


@pytest.fixture
def trained(project: Path, empty_database: Path) -> Path:
    """A project that has a store of MLflow's."""
    shutil.copy(empty_database, project / "mlflow.db")
    return project


@pytest.mark.parametrize("command", PREFECT, ids=" ".join)
def test_a_prefect_server_that_does_not_answer_is_named(trained: Path, thaw: Thaw, command: list[str]) -> None:
    url = f"http://me:secret@127.0.0.1:{(port := dead_port())}/api"
    with temporary_settings({PREFECT_API_URL: url}):
        told = sentence(thaw(trained, *command))
    assert f"no Prefect server answers at http://127.0.0.1:{port}/api; start it, correct PREFECT_API_URL, or" in told


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (401, "the Prefect server at {} refuses the credentials (401); set PREFECT_API_AUTH_STRING to USER:PASSWORD"),
        (403, "the Prefect server at {} refuses the credentials (403); set PREFECT_API_AUTH_STRING to USER:PASSWORD"),
        (404, "what answers at {} is no API of Prefect; correct PREFECT_API_URL, it ends in /api."),
        (500, "the Prefect server at {} fails (500); its log says why: mend it, and try again."),
        (200, "what answers at {} is no API of Prefect; correct PREFECT_API_URL, it ends in /api."),
    ],
)
def test_what_a_prefect_server_answers_is_told(trained: Path, thaw: Thaw, status: int, told: str) -> None:
    with answering(status, ODD[status]) as port:
        url = f"http://127.0.0.1:{port}/api"
        with temporary_settings({PREFECT_API_URL: url.replace("//", "//me:secret@")}):
            for command in PREFECT:
                assert told.format(url) in sentence(thaw(trained, *command))


def test_a_prefect_server_that_goes_away_while_a_flow_runs_is_told_and_the_flow_may_be_tried_again() -> None:
    url = f"http://me:secret@127.0.0.1:{(port := dead_port())}/api"
    told = rf"^the Prefect server at http://127\.0\.0\.1:{port}/api has gone away"
    with pytest.raises(TemporaryError, match=told), told_when_gone(url):
        httpx.get(url)
    with pytest.raises(TemporaryError, match=told), temporary_settings({PREFECT_API_URL: url}), told_when_gone(url):
        flow(lambda: None, name="nothing")()
    with pytest.raises(RuntimeError, match="another"), told_when_gone(url):
        raise RuntimeError("another")


@pytest.mark.parametrize("command", PREFECT, ids=" ".join)
def test_the_postgresql_of_a_prefect_server_that_is_to_be_started_is_named(
    trained: Path, thaw: Thaw, command: list[str]
) -> None:
    uri = f"postgresql+asyncpg://me:secret@127.0.0.1:{(port := dead_port())}/prefect"
    with temporary_settings({PREFECT_SERVER_DATABASE_CONNECTION_URL: uri, PREFECT_API_URL: None}):
        told = sentence(thaw(trained, *command))
    assert f"PostgreSQL at postgresql+asyncpg://127.0.0.1:{port}/prefect does not answer; start it, or correct" in told
    assert "PREFECT_SERVER_DATABASE_CONNECTION_URL" in told


# Servers of vLLM


def served(port: int) -> list[str]:
    return ["--set", "rollout.engine=vllm", "--set", f"rollout.placement=http://127.0.0.1:{port}"]


@pytest.mark.parametrize("command", [PROBE, TRAIN, EVALUATE], ids=lambda command: command[0])
def test_a_vllm_server_that_does_not_answer_is_named_and_may_be_tried_again(
    trained: Path, thaw: Thaw, command: list[str]
) -> None:
    told = sentence(thaw(trained, *command, *served(port := dead_port())), 75)
    assert f"no vLLM server answers at http://127.0.0.1:{port}; start it, or correct rollout.placement." in told


@pytest.mark.parametrize(
    ("answer", "told", "ends"),
    [
        (401, "the vLLM server at {} asks for a key (401), and VLLM_API_KEY is not it: set it to the server's.", 2),
        (403, "the vLLM server at {} asks for a key (403), and VLLM_API_KEY is not it: set it to the server's.", 2),
        (404, "the vLLM server at {} has no /v1/models: start it with VLLM_SERVER_DEV_MODE=1 and --tokens-only.", 2),
        (500, "the vLLM server at {} failed (500)", 75),
        (200, "what answers at {} is no vLLM server; correct rollout.placement.", 2),
    ],
)
def test_what_a_vllm_server_answers_is_told(trained: Path, thaw: Thaw, answer: int, told: str, ends: int) -> None:
    with answering(answer, ODD[answer]) as port:
        for command in (EVALUATE, PROBE):
            said = sentence(thaw(trained, *command, *served(port)), ends)
            assert told.format(f"http://127.0.0.1:{port}") in said
