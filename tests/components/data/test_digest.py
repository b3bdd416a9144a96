"""The digests that MLflow is told are those that DVC itself writes."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from components.data.digest import dvc_md5

FILES = {
    "plain.txt": b"one line\n",
    "empty": b"",
    "windows.txt": b"two\r\nlines\r\n",
    "binary.bin": bytes(range(256)) * 5000,
    ".hidden": b"seen all the same",
    "a/x.txt": b"1",
    "a-b/x.txt": b"2",
    "a.b/x.txt": b"3",
    "a/b/c/deep.txt": b"4",
    "a b/with blank.txt": b"5",
    "größe/日本.txt": b"6",
    "a/same.txt": b"one line\n",
    "Z/upper.txt": b"7",
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder and a file that DVC tracks."""
    root = tmp_path_factory.mktemp("repository")
    for name, content in FILES.items():
        path = root / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (root / "folder" / "no files").mkdir()
    (root / "one.bin").write_bytes(FILES["binary.bin"])
    for command in (["init", "--no-scm", "--quiet"], ["add", "--quiet", "folder", "one.bin"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], cwd=root, check=True)
    return root


@pytest.mark.parametrize("name", ["folder", "one.bin"])
def test_digests_are_dvcs(name: str, repository: Path) -> None:
    [tracked] = yaml.safe_load((repository / f"{name}.dvc").read_text())["outs"]
    assert dvc_md5(repository / name) == tracked["md5"]
    assert tracked["md5"].endswith(".dir") == (name == "folder")


def test_a_digest_changes_with_contents_and_names_alone(tmp_path: Path) -> None:
    def digest(**files: str) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
        return dvc_md5(folder)

    assert digest(a="1", b="2") == digest(b="2", a="1")
    assert len({digest(a="1", b="2"), digest(a="2", b="1"), digest(a="1", c="2"), digest(a="1"), digest()}) == 5
