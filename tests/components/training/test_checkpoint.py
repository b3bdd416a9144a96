"""What is left on disk when a run is killed while it writes, and which of it is read again."""

from pathlib import Path
from typing import Any

import pytest

from components.errors import UserError
from components.training.checkpoint import (
    RunState,
    begun_state,
    find_state,
    load_state,
    refuse_other,
    save_begun,
    save_state,
    write_folder,
)

IDENTITY: dict[str, Any] = {"settings": {"train": {"steps": 4, "learning_rate": 0.001}}, "arm": "grpo", "seed": 0}


class Killed(BaseException):
    """As good as a signal: nothing catches it."""


def content(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def writes(text: str):
    return lambda folder: (folder / "weights").write_text(text)


def write_half_and_die(folder: Path) -> None:
    (folder / "weights").write_text("half")
    raise Killed


# Folders


def test_a_folder_is_written_and_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "step-1"
    write_folder(folder, writes("old"))
    (folder / "left over").write_text("x")
    write_folder(folder, writes("new"))
    assert content(tmp_path) == {"deep/step-1/weights": "new"}


def test_a_folder_that_fails_never_appears_under_its_name(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        write_folder(tmp_path / "step-1", write_half_and_die)
    assert not (tmp_path / "step-1").exists()
    write_folder(tmp_path / "step-1", writes("whole"))  # what was left behind is no hindrance
    assert content(tmp_path) == {"step-1/weights": "whole"}


def test_a_folder_that_fails_leaves_the_old_one_as_it_was(tmp_path: Path) -> None:
    write_folder(tmp_path / "step-1", writes("old"))
    with pytest.raises(Killed):
        write_folder(tmp_path / "step-1", write_half_and_die)
    assert content(tmp_path / "step-1") == {"weights": "old"}


# States


def test_a_state_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    state = RunState(
        IDENTITY, step=4, best_step=2, best_score=0.1, mlflow_run_id="abc", wall_seconds=0.1 + 0.2,
        curves=[{"step": 1, "train/p_estimate": 1e-300}, {"step": 2, "train/p_estimate": 0.1 + 0.2}],
        versions={"2": 1, "4": 7},
    )  # fmt: skip
    save_state(tmp_path, state, writes("trainer"))
    assert find_state(tmp_path) == tmp_path / "step-4"
    assert load_state(tmp_path / "step-4", IDENTITY) == state
    assert (tmp_path / "step-4" / "weights").read_text() == "trainer"


def test_the_latest_state_is_found_by_number_and_half_ones_are_passed_over(tmp_path: Path) -> None:
    assert find_state(tmp_path / "none") is None
    for name in ("step-9", "step-10", "step-11.partial", "step-2"):
        (tmp_path / name).mkdir()
    assert find_state(tmp_path) == tmp_path / "step-10"


def test_saving_removes_the_states_before(tmp_path: Path) -> None:
    for step in (9, 10, 11):
        save_state(tmp_path, RunState(IDENTITY, step=step), writes("trainer"))
        assert [path.name for path in tmp_path.iterdir()] == [f"step-{step}"]


def test_a_run_that_has_only_begun_is_known_again_until_its_first_state(tmp_path: Path) -> None:
    state = RunState(IDENTITY, mlflow_run_id="abc")
    save_begun(tmp_path, state)
    assert find_state(tmp_path) is None
    assert begun_state(tmp_path, IDENTITY) == state
    other = {**IDENTITY, "seed": 1}
    anew = begun_state(tmp_path, other)  # nothing was done yet, so nothing is refused
    assert anew == RunState(other, anew.run_key)
    assert anew.run_key != state.run_key
    save_state(tmp_path, RunState(IDENTITY, step=2), writes("trainer"))
    after = begun_state(tmp_path, IDENTITY)
    assert after == RunState(IDENTITY, after.run_key)
    assert after.run_key != state.run_key


def test_a_state_that_fails_leaves_the_one_before(tmp_path: Path) -> None:
    save_state(tmp_path, RunState(IDENTITY, step=2), writes("trainer"))
    with pytest.raises(Killed):
        save_state(tmp_path, RunState(IDENTITY, step=4), write_half_and_die)
    assert find_state(tmp_path) == tmp_path / "step-2"
    assert load_state(tmp_path / "step-2", IDENTITY).step == 2
    save_state(tmp_path, RunState(IDENTITY, step=4), writes("trainer"))
    assert [path.name for path in tmp_path.iterdir()] == ["step-4"]


# Identities


def test_a_state_of_another_run_is_refused_with_every_difference(tmp_path: Path) -> None:
    save_state(tmp_path, RunState(IDENTITY, step=4), writes("trainer"))
    other = {"settings": {"train": {"steps": 4, "learning_rate": 0.1}}, "arm": "garl-q0", "seed": 0, "data": "d1"}
    with pytest.raises(UserError) as refused:
        load_state(tmp_path / "step-4", other)
    assert str(refused.value) == (
        f"{tmp_path / 'step-4'} belongs to another run (arm: grpo there, garl-q0 now; data: None there, d1 now;"
        " settings.train.learning_rate: 0.001 there, 0.1 now); take another --out or delete that folder."
    )


def test_equal_identities_are_accepted_whatever_their_order(tmp_path: Path) -> None:
    refuse_other(IDENTITY, dict(reversed(IDENTITY.items())), tmp_path)
    with pytest.raises(UserError, match="seed: 0 there, None now"):
        refuse_other(IDENTITY, {name: value for name, value in IDENTITY.items() if name != "seed"}, tmp_path)
