"""Copies of a model: its weights are one file with the source's, the rest are files of their own."""

import os
import stat
from pathlib import Path

import pytest

from components.links import copy_model


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
    (tmp_path / "blob").write_bytes(b"weights of a hub's cache")
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to(tmp_path / "blob")
    copy_model(model, tmp_path / "copy")
    assert not (tmp_path / "copy" / "model.safetensors").is_symlink()
    assert contents(tmp_path / "copy") == contents(model)


def test_where_nothing_can_be_linked_it_is_copied(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise OSError("another disk")

    monkeypatch.setattr(os, "link", refuse)
    copy_model(model, tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(model)
    assert shared(model, tmp_path / "copy") == set()
