"""What many tests share: the settings of the project, made small, real data, stores, and one thread."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.small import SMALL
from components.config import Settings, load_settings

if TYPE_CHECKING:
    from components.tracking.runs import Tracker
    from tests.components.publishing.stand_in import Hub
    from tests.postgres import Postgres

PROJECT = Path(__file__).parent.parent

# Real data and tokenizers are no part of the project: the environment names their folders, or does not.
SAMPLES, TOKENIZERS = os.environ.get("THAW_SAMPLES"), os.environ.get("THAW_TOKENIZER")

# The files of flows/ that look at no sweep but their own, and may run beside the others.
WITHOUT_SWEEP = {
    f"tests/flows/test_{name}.py"
    for name in (
        "backends", "doctor", "flows", "gc", "init", "parameters", "published", "race", "schema", "services",
        "terminal", "theory",
    )
}  # fmt: skip


def small_settings(*overrides: str) -> Settings:
    return load_settings(PROJECT / "params.yaml", [*SMALL, f"task.path={PROJECT / 'data/skills'}", *overrides])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/flows/"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where processes share the tests, each takes whole files, and those that share the sweep of flows/ together."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "sweep" if file.startswith("tests/flows/") and file not in WITHOUT_SWEEP else file

    return Scheduler(config, log)


@pytest.fixture(scope="module", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Takes back what a file's tests did to their process: training makes a process group and sets ranks."""
    before = dict(os.environ)
    yield
    if "deepspeed" in sys.modules:
        import deepspeed

        if deepspeed.comm.is_initialized():
            deepspeed.comm.destroy_process_group()  # PyTorch's own would leave DeepSpeed with groups that are gone
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def project() -> Path:
    return PROJECT


@pytest.fixture(scope="session")
def real_samples() -> Path:
    """The folder with samples of the published data sets."""
    if not SAMPLES:
        pytest.skip("THAW_SAMPLES does not name the folder of real samples")
    return Path(SAMPLES)


@pytest.fixture(scope="session")
def qwen3() -> Path:
    """The folder of Qwen3's tokenizer."""
    if not TOKENIZERS:
        pytest.skip("THAW_TOKENIZER does not name the folder of real tokenizers")
    return Path(TOKENIZERS) / "qwen3"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator["Hub"]:
    """A stand-in where this process finds the hub; files go there as by git-lfs, for it has no Xet storage."""
    from tests.components.publishing.stand_in import TOKEN, running

    with running() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the embedded model, untaught: one that Transformers loads."""
    from components.policy.embedded import build_model, build_tokenizer
    from components.policy.saving import save_policy

    folder = tmp_path_factory.mktemp("models") / "embedded"
    tokenizer = build_tokenizer()
    save_policy(build_model(tokenizer, 0), tokenizer, folder)
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Models this small only wait for more of them."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's empty tables, which take seconds to make; each test starts from a copy."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}")
    return path


@pytest.fixture
def tracker(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> "Tracker":
    """MLflow in a file of this test's own."""
    from components.tracking.runs import connect

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return connect(tmp_path)


@pytest.fixture(scope="session")
def postgres() -> Iterator["Postgres"]:
    from tests.postgres import Postgres

    server = Postgres()
    yield server
    server.stop()
