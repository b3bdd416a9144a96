"""`thaw push` and `thaw card` of what a real sweep has left: its registry, its final folders."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from components.data.digest import dvc_md5
from tests.components.publishing.stand_in import TOKEN, Hub
from tests.flows.conftest import Swept, Thaw

ARM = "garl-q0.75"


def reference(swept: Swept) -> str:
    record = swept.json(f"train/{ARM}/0/train.json")
    return f"{record['model_name']}/{record['model_version']}"


def test_a_registered_version_is_on_the_hub_with_its_figures_and_its_forecast(
    swept: Swept, thaw: Thaw, hub: Hub, tmp_path: Path
) -> None:
    said = thaw(swept.project.folder, "push", reference(swept), "me/skills", "--license", "mit")
    assert (said.status, said.out) == (0, f"{reference(swept)} is at {hub.address}/me/skills/commit/{'1' * 40}\n")
    assert TOKEN not in said.out + said.err
    repository = hub.repositories["me/skills"]
    assert repository.private
    assert repository.messages == [
        f"{reference(swept)}: {ARM}, step {swept.json(f'train/{ARM}/0/train.json')['best_step']}, by Thaw"
    ]
    files = repository.branches["main"]
    card = ModelCard(files.pop("README.md").decode())
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert dvc_md5(tmp_path) == dvc_md5(swept[f"train/{ARM}/0/final"])

    [results] = card.data.to_dict()["model-index"]
    measured = swept.json(f"evaluate/{ARM}/0/metrics.json")
    found = {
        metric["type"]: metric
        for result in results["results"] if result["dataset"]["split"] == "test"
        for metric in result["metrics"]
    }  # fmt: skip
    assert found["maj@4"]["value"] == round(100 * measured["maj_at_4"], 1)
    ends = [round(100 * measured[f"maj_at_4_{end}"], 1) for end in ("low", "high")]
    assert found["maj@4"]["args"] == {"interval_95_percent": ends}
    assert {"pass@1", "pass@4"} <= set(found)
    [forecast] = [item for item in swept.json("probe/forecast.json") if item["arm"] == ARM]
    assert f"changed mean log P of held-out questions by {forecast['gain']['value']:+.1f} nats" in card.text
    run = swept.json(f"train/{ARM}/0/train.json")
    for fact in (run["mlflow_run_id"], run["identity"]["data"], run["identity"]["base"], "git commit: `"):
        assert fact in card.text
    assert str(swept.project.folder) not in str(card)


def test_the_final_folder_is_its_version_and_without_a_store_what_its_record_says(
    swept: Swept, thaw: Thaw, tmp_path: Path
) -> None:
    folder = swept.project.folder
    of_version = thaw(folder, "card", reference(swept), "me/skills")
    of_folder = thaw(folder, "card", f"build/train/{ARM}/0/final", "me/skills")
    assert of_version.status == of_folder.status == 0
    assert of_version.out == of_folder.out
    copied = tmp_path / "elsewhere" / "final"
    copied.mkdir(parents=True)
    for source in (*swept[f"train/{ARM}/0/final"].iterdir(), swept[f"train/{ARM}/0/train.json"]):
        (copied if source.parent.name == "final" else copied.parent).joinpath(source.name).write_bytes(
            source.read_bytes()
        )
    said = thaw(tmp_path, "card", "elsewhere/final", "me/skills")
    assert f"| arm | `{ARM}` |" in said.out
    assert "maj@4" in said.out
    assert "git commit" not in said.out


def test_a_dry_run_shows_what_would_go_and_asks_nobody(swept: Swept, thaw: Thaw, hub: Hub) -> None:
    said = thaw(swept.project.folder, "push", f"build/train/{ARM}/0/final", "me/skills", "--dry-run", "--public")
    assert said.status == 0
    assert said.out.startswith(f"me/skills, main, public: {reference(swept)}: {ARM}, step ")
    size = swept[f"train/{ARM}/0/final/model.safetensors"].stat().st_size
    assert f"{size:,}  model.safetensors\n" in said.out
    card = thaw(swept.project.folder, "card", f"build/train/{ARM}/0/final", "me/skills").out
    assert said.out.endswith(card)
    assert hub.asked == []


def test_a_readme_of_ones_own_is_published_as_it_is(swept: Swept, thaw: Thaw, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for source in swept["base"].iterdir():
        (folder / source.name).write_bytes(source.read_bytes())
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    assert thaw(tmp_path, "card", "mine", "me/mine").out == "---\nlicense: mit\n---\n# Mine\n"
    said = thaw(tmp_path, "card", "mine", "me/mine", "--license", "mit")
    assert said.status == 2
    assert "says what the license is" in said.err
    (folder / "README.md").write_text("# Mine\n")
    assert "does not begin with a block of YAML" in thaw(tmp_path, "card", "mine", "me/mine").err


def test_what_keeps_a_push_is_one_sentence_and_its_status(
    swept: Swept, thaw: Thaw, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, command = swept.project.folder, ("push", "build/base", "me/base")
    hub.fail = {"POST /api/repos": 500}
    said = thaw(folder, *command)
    assert said.status == 75
    assert said.err.startswith("error: the Hugging Face hub at ")
    monkeypatch.delenv("HF_TOKEN")
    said = thaw(folder, *command)
    assert (said.status, said.out) == (2, "")
    assert said.err.startswith("error: there is no token for the Hugging Face hub; set HF_TOKEN")
    assert "names no repository of the hub" in thaw(folder, "push", "build/base", "base").err
    assert json.loads((folder / "build/base/config.json").read_text())["model_type"]  # what was there is there
