"""Copies of a model: its weights are one file with the source's, the rest are files of their own."""

import json
import os
import stat
from pathlib import Path

import pytest

from components.errors import UserError
from components.links import check_model, copy_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "extra").mkdir(parents=True)
    (folder / "extra" / "adapter.safetensors").write_bytes(b"more weights")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shared(one: Path, other: Path) -> set[str]:
    return {name for name in contents(one) if (one / name).samefile(other / name)}


def test_weights_are_linked_and_what_people_edit_is_copied(model: Path, tmp_path: Path):
    copy_model(model, tmp_path / "a" / "copy")
    assert contents(tmp_path / "a" / "copy") == contents(model)
    weights = {"model.safetensors", "extra/adapter.safetensors"}
    assert shared(model, tmp_path / "a" / "copy") == weights
    modes = {name: stat.S_IMODE((model / name).stat().st_mode) & 0o222 for name in contents(model)}
    assert {name for name, mode in modes.items() if mode == 0} == weights


def test_a_link_to_weights_is_not_what_is_kept(model: Path, tmp_path: Path):
    blob = tmp_path / "blobs" / ("0af" * 14)[:40]
    blob.parent.mkdir()
    blob.write_bytes(b"weights of a hub's cache")
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to(blob)
    copy_model(model, tmp_path / "copy")
    assert not (tmp_path / "copy" / "model.safetensors").is_symlink()
    assert contents(tmp_path / "copy") == contents(model)


def test_links_inside_the_folder_and_into_caches_are_followed(model: Path, tmp_path: Path):
    cached = tmp_path / "files" / "md5" / "d4" / ("1d8" * 10)
    cached.parent.mkdir(parents=True)
    cached.write_text("{}")
    (model / "tokenizer.json").symlink_to(cached)
    (model / "extra" / "config.json").symlink_to("../config.json")
    copy_model(model, tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(model)
    assert not [path for path in (tmp_path / "copy").rglob("*") if path.is_symlink()]


@pytest.mark.parametrize("target", ["{}/secret", "../secret", "../secret/../secret", "/etc/passwd", "..", ".", "gone"])
@pytest.mark.parametrize("name", ["chat_template.jinja", "model.safetensors", "extra/more.json"])
def test_links_that_lead_out_are_refused(model: Path, tmp_path: Path, name: str, target: str):
    (tmp_path / "secret").write_text("the key")
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(target.format(tmp_path))
    with pytest.raises(UserError, match=f"{name} is a link to .*, out of the model's folder|neither file nor folder"):
        copy_model(model, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_what_is_no_file_is_refused(model: Path):
    os.mkfifo(model / "model-00001.safetensors")
    with pytest.raises(UserError, match="is neither file nor folder"):
        check_model(model)


@pytest.mark.parametrize("place", ["../secret.safetensors", "/secret.safetensors", "..", ".", "a/../../b"])
def test_an_index_cannot_name_weights_elsewhere(model: Path, place: str):
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    check_model(model)
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": place}}))
    with pytest.raises(UserError, match=r"index\.json names weights in '.*', out of the model's folder"):
        check_model(model)


@pytest.mark.parametrize("text", ["[]", "", "{", "\0", "[" * 100_000, "\xff"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "x.index.json"])
def test_descriptions_that_are_none_are_refused(model: Path, name: str, text: str):
    (model / name).write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=f"{name} is no JSON object"):
        check_model(model)


def test_where_nothing_can_be_linked_it_is_copied(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise OSError("another disk")

    monkeypatch.setattr(os, "link", refuse)
    copy_model(model, tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(model)
    assert shared(model, tmp_path / "copy") == set()
