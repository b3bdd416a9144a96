"""The hash DVC gives to files and folders, so that what is logged elsewhere can be found in dvc.lock."""

import hashlib
import json
from pathlib import Path


def dvc_md5(path: Path) -> str:
    """DVC's md5 of a file, or of a folder (ending in .dir): of the sorted list of its files' md5s and paths."""
    if path.is_file():
        return _md5(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    entries = [{"md5": _md5(file), "relpath": file.relative_to(path).as_posix()} for file in files]
    entries.sort(key=lambda entry: entry["relpath"])
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest() + ".dir"


def _md5(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()
