"""What a shell sees of commands: exit statuses, colours, and what it completes."""

import re
import subprocess
from pathlib import Path

import pytest

from components.errors import STATUSES, TemporaryError, UserError
from tests.conftest import PROJECT
from tests.flows.conftest import Thaw
from tests.flows.terminal import THAW, environment, on_terminal

COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3|4|9)\d")


def test_help_lists_the_exit_statuses(tmp_path: Path, thaw: Thaw):
    said = thaw(tmp_path, "--help")
    assert said.status == 0
    told = " ".join(said.out.split())
    assert all(f"{status} {meaning}" in told for status, meaning in STATUSES.items())


@pytest.mark.parametrize(
    ("error", "status"), [(UserError("x."), 2), (TemporaryError("x."), 75), (KeyboardInterrupt(), 130)], ids=repr
)
def test_how_a_command_ends_is_its_status(
    tmp_path: Path, thaw: Thaw, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int
):
    (tmp_path / "params.yaml").write_bytes((PROJECT / "params.yaml").read_bytes())

    def ends(*_: object) -> None:
        raise error

    monkeypatch.setattr("tasks.inputs.make_data", ends)
    assert thaw(tmp_path, "prepare").status == status


def test_an_option_that_does_not_exist_is_to_be_mended(tmp_path: Path, thaw: Thaw):
    assert thaw(tmp_path, "prepare", "--quickly").status == 2


def test_an_error_is_red_on_a_terminal_unless_no_colour_is_wanted(tmp_path: Path):
    command = ("lineage", "--colour")
    assert COLOUR.search(on_terminal(tmp_path, *command).shown)
    assert not COLOUR.search(on_terminal(tmp_path, *command, more={"NO_COLOR": "1"}).shown)
    (tmp_path / "params.yaml").write_text("")
    told = "error: params.yaml holds no settings"
    shown = on_terminal(tmp_path, "prepare").shown
    assert told in shown
    assert COLOUR.search(shown)
    shown = on_terminal(tmp_path, "prepare", more={"NO_COLOR": "1"}).shown
    assert told in shown
    assert "\x1b" not in shown


def test_bash_completes_commands_and_options(tmp_path: Path):
    script = """
        eval "$(thaw --show-completion bash)"
        complete -p thaw
        function_of() { complete -p thaw | sed 's/.*-F \\([^ ]*\\) .*/\\1/'; }
        for line in "thaw swe" "thaw evaluate --js" "thaw data fe"; do
            COMP_WORDS=($line) COMP_CWORD=$(($(wc -w <<< "$line") - 1)) COMPREPLY=()
            $(function_of) thaw
            echo "$line: ${COMPREPLY[*]}"
        done
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", script], cwd=tmp_path, env=environment({}), text=True, capture_output=True, check=False
    )
    assert THAW.is_file()
    said = done.stdout.splitlines()
    assert said[-3:] == ["thaw swe: sweep", "thaw evaluate --js: --json", "thaw data fe: fetch"], done.stderr
