"""Types commands in one process, so that what they import is imported once: `python -m tests.follow '[["thaw"], ...]'`.

Prints a JSON list of the status that each of them ended with and what it said, up to the first that failed.
"""

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

PYTEST = ("-p", "no:cacheprovider", "--quiet")


def follow(words: Sequence[str]) -> tuple[int, str]:
    """Type one command; its status, and what it said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        if words[0] == "thaw":
            status = thaw(words)
        elif list(words[:3]) == ["python", "-m", "pytest"]:
            status = int(
                pytest.main(["-p", "no:cacheprovider", "-o", "addopts=", "--import-mode=importlib", *words[3:]])
            )
        else:
            done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
            status = done.returncode
            said.write(done.stdout)
    return status, said.getvalue()


def thaw(words: Sequence[str]) -> int:
    from flows.cli import main

    sys.argv = list(words)
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def main() -> None:
    found = []
    for words in json.loads(sys.argv[1]):
        command, into = (words[:-2], words[-1]) if words[-2:-1] == [">"] else (words, None)
        status, said = follow(command)
        if into:
            Path(into).write_text(said, encoding="utf-8")
        found.append((status, said))
        if status:
            break
    print(json.dumps(found))


if __name__ == "__main__":
    main()
