"""Models that others made: no pickle, no code and no file from elsewhere gets in, whatever lies in their folder."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.errors import UserError
from components.policy.embedded import build_model, build_tokenizer
from components.policy.saving import save_policy
from tasks.evaluation import evaluate_model
from tasks.inputs import find_base, make_base, make_data
from tests.conftest import small_settings

MODEL = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
PICKLES = ("pytorch_model.bin", "adapter_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "vocab.pkl")


class Planted:
    """Unpickled, it writes a file."""

    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.ran), "w")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = build_tokenizer()
    folder = tmp_path_factory.mktemp("model") / "model"
    save_policy(build_model(tokenizer, 0), tokenizer, folder)
    return folder


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """What planted code writes."""
    return tmp_path / "ran"


def base(model: Path) -> Path:
    """The base model that is made of a folder."""
    out = model.with_name("base")
    make_base(small_settings(f"model.name={model}"), out)
    return out


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_pickles_beside_the_weights_are_not_read_and_not_passed_on(model: Path, ran: Path):
    for name in PICKLES:
        (model / name).write_bytes(pickle.dumps(Planted(ran)))
    assert sorted(path.name for path in base(model).iterdir()) == sorted([*MODEL, "settings.json"])
    assert not ran.exists()
    pickle.loads(pickle.dumps(Planted(ran)))
    assert ran.exists(), "these pickles do nothing"


def test_pickles_instead_of_the_weights_are_refused(model: Path, ran: Path):
    (model / "model.safetensors").rename(model / "gone")
    for name in PICKLES:
        (model / name).write_bytes(pickle.dumps(Planted(ran)))
    with pytest.raises(UserError, match=r"no model can be loaded from .*no file named model\.safetensors"):
        base(model)
    assert not ran.exists()


@pytest.mark.parametrize("kind", ["qwen3", "planted"])
def test_code_beside_a_model_is_not_run(model: Path, ran: Path, kind: str):
    (model / "planted.py").write_text(f"open({str(ran)!r}, 'w')\nclass Planted: pass\n")
    classes = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "planted.Planted")
    change(model / "config.json", model_type=kind, auto_map=classes)
    change(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["planted.Planted", "planted.Planted"]})
    if kind == "qwen3":  # Transformers has a class of its own for it
        assert not (base(model) / "planted.py").exists()
    else:
        with pytest.raises(UserError, match=r"no model can be loaded from .*contains custom code"):
            base(model)
    assert not ran.exists()


def test_a_link_out_of_a_folder_is_refused_wherever_it_is_read(model: Path, tmp_path: Path):
    (tmp_path / "secret").write_text("the key")
    (model / "chat_template.jinja").symlink_to("../secret")
    settings = small_settings(f"model.name={model}")
    for read in (
        lambda: base(model),
        lambda: make_data(settings, tmp_path / "data"),
        lambda: find_base(settings, model, tmp_path, tmp_path),
        lambda: evaluate_model(settings, str(model), [], split="test", out=tmp_path / "out"),
    ):
        with pytest.raises(UserError, match=r"chat_template\.jinja is a link to .*/secret, out of the model's folder"):
            read()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"the key" in path.read_bytes()
                and path.resolve() != tmp_path / "secret"]  # fmt: skip
