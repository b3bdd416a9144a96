"""Weights are written once and never changed: equal ones are one file under several names, where the disk can do that.

It is read-only, for to write into it would change the weights under every name; whoever replaces them gives the name to
a new file. All other files of a model are small, people edit them, and they are copied.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from components.errors import UserError

WEIGHTS = ".safetensors"
# Names that caches give to files by their content: Hugging Face's and DVC's, which link to them.
CACHED = re.compile(r".*/(blobs/[0-9a-f]{40,64}|files/md5/[0-9a-f]{2}/[0-9a-f]{30})")
DESCRIBING = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")


def copy_model(source: Path, target: Path) -> None:
    """Copy the folder of a model to `target`, which is missing or empty; its weights are linked where that works.

    Raises:
        UserError: as `check_model` does.
    """
    check_model(source)
    shutil.copytree(source, target, copy_function=_link_or_copy, dirs_exist_ok=True)


def check_model(folder: Path) -> None:
    """Refuse a model's folder, which anybody may have made, that would have us read other files than its own.

    Raises:
        UserError: a link in it, or the index of its weights, leads out of the folder, or a file that describes the
            model holds no JSON object.
    """
    own = os.path.realpath(folder)
    for path in folder.rglob("*"):
        target = os.path.realpath(path)
        if path.is_symlink() and (path.is_dir() or not (target.startswith(f"{own}/") or CACHED.fullmatch(target))):
            raise UserError(f"{path} is a link to {target}, out of the model's folder; put a file there.")
        if not path.is_dir() and not path.is_file():
            raise UserError(f"{path} is neither file nor folder; take it out of the model's folder.")
    for name in DESCRIBING:
        if (folder / name).is_file():
            _json_object(folder / name)
    for index in folder.glob("*.index.json"):
        if outside := [name for name in _indexed(index) if name != Path(name).name or name == ".."]:
            raise UserError(f"{index} names weights in {outside[0]!r}, out of the model's folder; put them there.")


def _indexed(index: Path) -> Iterator[str]:
    """The files that an index of weights names."""
    places = _json_object(index).get("weight_map")
    yield from map(str, places.values() if isinstance(places, dict) else ())


def _json_object(path: Path) -> dict[str, Any]:
    found = None
    with suppress(ValueError, RecursionError):
        found = json.loads(path.read_bytes())
    if not isinstance(found, dict):
        raise UserError(f"{path} is no JSON object; get the model again from its authors.")
    return found


def _link_or_copy(source: str, target: str) -> None:
    if source.endswith(WEIGHTS):
        with suppress(OSError):  # another disk, one without links, or a file of somebody else
            os.link(os.path.realpath(source), target)
            with suppress(PermissionError):
                os.chmod(target, 0o444)
            return
    shutil.copyfile(source, target)
