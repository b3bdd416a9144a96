"""A process group that ends with each file, a tiny policy, a small experiment, and a store of runs for each test."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from components.policy.base import make_base
from components.policy.model import load_model
from components.tracking.runs import connect
from components.training import turn
from tasks.inputs import make_data
from tests.components.training.runs import Experiment, Reference
from tests.conftest import small_settings

VOCABULARY = 11


@pytest.fixture(scope="module", autouse=True)
def one_thread_and_no_determinism_left_behind() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


def build_policy() -> PreTrainedModel:
    """A Qwen3 of a few hundred weights, large enough for every part to matter."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        initializer_range=0.4,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config)


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    build_policy().save_pretrained(folder)
    return folder


@pytest.fixture
def new_policy(policy_folder: Path) -> Callable[[], PreTrainedModel]:
    """Makes the policy under test, always with the same weights."""
    return lambda: load_model(policy_folder)


@pytest.fixture
def plain_policy() -> PreTrainedModel:
    """The same weights in Transformers' model as it is."""
    return build_policy()


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    folder, settings = tmp_path_factory.mktemp("experiment"), small_settings()
    make_data(settings, folder / "data")
    make_base(settings, folder / "base")
    return Experiment(settings, folder / "data", folder / "base")


@pytest.fixture(scope="module")
def reference(experiment: Experiment, empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    root = tmp_path_factory.mktemp("reference")
    shutil.copy(empty_database, root / "mlflow.db")
    tracker = connect(root)
    return Reference(root / "out", tracker, experiment.train(root / "out", tracker))


@pytest.fixture
def unstable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever three steps measured shows that training is unstable."""
    for name, value in {"WINDOW": 3, "FALLEN": 2.0, "CHANCE": -1e9, "ATTENUATION": 0.0}.items():
        monkeypatch.setattr(turn, name, value)
