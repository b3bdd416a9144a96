"""Prompts are text files that a user may edit, and may break."""

from pathlib import Path

import pytest

from components.data import templates
from components.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(templates, "FOLDER", tmp_path)
    templates._template.cache_clear()
    return tmp_path


def test_fields_are_filled_in_and_their_dollars_left_alone(folder: Path) -> None:
    (folder / "x.txt").write_text("\nIt costs $$5 or $problem.\n\n")
    assert templates.render("x", problem="$ 3 $problem") == "It costs $5 or $ 3 $problem."


@pytest.mark.parametrize("text", ["$unknown", "costs $5", "${problem"])
def test_a_broken_template_is_one_sentence_naming_file_and_fields(folder: Path, text: str) -> None:
    (folder / "x.txt").write_text(text)
    with pytest.raises(UserError, match=r"x\.txt: .*use \$problem, and \$\$ for a dollar sign"):
        templates.render("x", problem="y")


@pytest.mark.parametrize("task", ["finqa", "hotpotqa", "musique", "jsonl"])
def test_warm_prompts_add_an_instruction_to_the_whole_problem(task: str) -> None:
    templates._template.cache_clear()
    warm = templates.render(f"{task}-warm", problem="THE PROBLEM")
    assert warm.endswith("\n\nTHE PROBLEM")
    assert "final answer" in warm
