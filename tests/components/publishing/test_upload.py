"""Models on their way to a hub that looks at every byte, and what keeps them from it."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from components.errors import Refused, TemporaryError, UserError
from components.publishing.card import Facts, model_card
from components.publishing.upload import check_repository, model_files, push
from tests.components.publishing.stand_in import TOKEN, Hub

REPO = "me/skills"


def pushed(folder: Path, *, public: bool = False, revision: str | None = None, license: str = "mit") -> str:
    card = model_card(Facts("a model"), REPO, license)
    return push(folder, model_files(folder), card, REPO, public=public, revision=revision, message="a push")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_model_arrives_byte_for_byte_in_a_private_repository(hub: Hub, model: Path) -> None:
    address = pushed(model)
    repository = hub.repositories[REPO]
    assert address.startswith(f"{hub.address}/{REPO}/commit/")
    assert repository.private
    assert repository.messages == ["a push"]
    card = repository.branches["main"].pop("README.md")
    assert card.decode() == str(model_card(Facts("a model"), REPO, "mit"))
    assert repository.branches["main"] == contents(model)


def test_a_second_push_sends_what_has_changed_and_leaves_no_old_weights(hub: Hub, model: Path) -> None:
    pushed(model)
    hub.asked.clear()
    pushed(model)
    assert not [request for request in hub.asked if request.startswith("PUT") or "/commit/" in request]
    for name in [path for path in model.iterdir() if "model-" in path.name or "index" in path.name]:
        name.unlink()
    save_file({"weight": np.zeros(3)}, model / "model.safetensors")
    pushed(model)
    found = hub.repositories[REPO].branches["main"]
    assert set(found) == {"README.md", "chat_template.jinja", "config.json", "model.safetensors"}
    assert found["model.safetensors"] == (model / "model.safetensors").read_bytes()
    assert len(hub.repositories[REPO].messages) == 2


def test_a_branch_is_made_and_main_stays(hub: Hub, model: Path) -> None:
    for _ in range(2):
        pushed(model, revision="step-50")
    branches = hub.repositories[REPO].branches
    assert branches["main"] == {}
    assert set(branches["step-50"]) == {*contents(model), "README.md"}


def test_what_a_repository_leaves_out_is_told(hub: Hub, model: Path) -> None:
    hub.ignored = {"config.json"}
    with pytest.raises(UserError, match=r"me/skills did not take config\.json, as a \.gitignore in it may say"):
        pushed(model)


def test_what_is_public_gets_nothing_without_being_told_so(hub: Hub, model: Path) -> None:
    pushed(model, public=True)
    assert not hub.repositories[REPO].private
    with pytest.raises(UserError, match="me/skills exists and is public; say so with --public"):
        pushed(model)
    pushed(model, public=True)


@pytest.mark.parametrize(
    ("fail", "kind", "told"),
    [
        ({"POST /api/repos": 401}, Refused, "does not take the token in HF_TOKEN"),
        ({"POST /api/models/me/skills/commit": 403}, Refused, "the token in HF_TOKEN may not write to me/skills"),
        ({"PUT /lfs": 403}, Refused, "may not write to me/skills"),
        ({"POST /api/repos": 500}, TemporaryError, r"fails \(500\); push again"),
        ({"POST /api/models/me/skills/commit": 503}, TemporaryError, r"fails \(503\); push again"),
        ({"GET /api/models": 404}, UserError, "knows no owner or revision as in me/skills"),
        ({"POST /api/models/me/skills/commit": 413}, UserError, "refuses me/skills: "),
    ],
)
def test_what_the_hub_refuses_is_one_sentence_without_the_token(
    hub: Hub, model: Path, fail: dict[str, int], kind: type[Exception], told: str
) -> None:
    hub.fail = fail
    with pytest.raises(kind, match=told) as caught:
        pushed(model)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert not [files for repository in hub.repositories.values() for files in repository.branches.values() if files]


@pytest.mark.parametrize(
    ("fail", "kind", "told"),
    [
        ({}, UserError, "has no Xet storage; set HF_HUB_DISABLE_XET=1 to push there"),
        ({"GET /api/models/me/skills/xet-write-token": 403}, Refused, "may not write to me/skills"),
        ({"GET /api/models/me/skills/xet-write-token": 401}, Refused, "does not take the token"),
    ],
)
def test_what_the_way_of_large_files_to_the_hub_itself_says_is_understood(
    hub: Hub, model: Path, fail: dict[str, int], kind: type[Exception], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    hub.fail = fail
    with pytest.raises(kind, match=told):
        pushed(model)


@pytest.mark.usefixtures("hub")
def test_a_wrong_token_and_another_ones_repository_are_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = model_card(Facts("a model"), "you/skills")
    with pytest.raises(Refused, match="may not write to you/skills"):
        push(model, model_files(model), card, "you/skills", public=False, revision=None, message="a push")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(Refused, match="does not take the token") as caught:
        pushed(model)
    assert "hf_wrong" not in str(caught.value)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="there is no token for the Hugging Face hub; set HF_TOKEN"):
        pushed(model)


def test_a_license_that_the_hub_does_not_know_makes_no_repository(hub: Hub, model: Path) -> None:
    with pytest.raises(UserError, match=r'refuses me/skills: .*"license" must be one of'):
        pushed(model, license="mine")
    assert not hub.repositories


@pytest.mark.usefixtures("hub")
def test_a_hub_that_is_not_there_may_be_there_later(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", nobody)
    with pytest.raises(TemporaryError, match=f"the Hugging Face hub at {nobody} cannot be reached; push again"):
        pushed(model)


@pytest.mark.parametrize("name", ["optimizer.pt", "model.bin", "modeling.py", ".env", "extra/state.pkl", "data.bin"])
def test_all_but_safetensors_json_and_text_stays_at_home(model: Path, name: str) -> None:
    (model / "extra").mkdir()
    (model / name).write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match=f"{name} is no safetensors, JSON or text file of a model and is not published"):
        model_files(model)


def test_a_pickle_by_another_name_and_a_link_that_leads_out_stay_at_home(model: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("{}")
    (model / "extra.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(UserError, match=r"extra\.json is a link to .*secret\.json, out of the model's folder"):
        model_files(model)
    (model / "extra.json").unlink()
    (model / "model-00002-of-00002.safetensors").write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors is no safetensors file"):
        model_files(model)


def test_a_folder_without_a_model_is_told(model: Path) -> None:
    os.remove(model / "config.json")
    with pytest.raises(UserError, match=r"holds no model to publish, which is a config\.json and weights"):
        model_files(model)


@pytest.mark.parametrize("name", ["skills", "me/skills/more", "me/ski lls", ""])
def test_what_is_no_repository_is_told(name: str) -> None:
    with pytest.raises(UserError, match="names no repository of the hub; write OWNER/NAME"):
        check_repository(name)
