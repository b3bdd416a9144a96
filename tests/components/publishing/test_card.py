"""Model cards, read back by the hub's own parser, and the lines in them that load a model, run."""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from components.errors import UserError
from components.publishing.card import Facts, model_card, read_card
from components.tracking.runs import flat
from tests.conftest import small_settings

FIGURES = {
    "test/maj_at_16": 0.5, "test/maj_at_16_low": 0.45, "test/maj_at_16_high": 0.5512, "test/p_at_1": 0.3,
    "november/maj_at_16": 0.25, "validation/log_p": -3.0,
}  # fmt: skip


def facts(*overrides: str) -> Facts:
    record = {"arm": "garl-q0.75", "seed": "0", "data": "d", "base": "b"}
    settings = {"settings": small_settings(*overrides).model_dump(mode="json")}
    logged = {name: str(value) for name, value in flat(settings).items()}
    return Facts("thaw-skills/3", record | logged, 50, FIGURES, "It was expected.", {"git commit": "abc"})


PUBLISHED = ("task.name=finqa", "task.start=warm", "model.name=Qwen/Qwen3-0.6B", "task.label_noise=0.1")


def test_the_hub_reads_what_the_model_is_and_what_it_scores() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        card = ModelCard(str(model_card(facts(*PUBLISHED), "me/finqa", "apache-2.0")))
    data = card.data.to_dict()
    assert data["base_model"] == "Qwen/Qwen3-0.6B"
    assert data["datasets"] == ["dreamerdeo/finqa"]
    assert (data["license"], data["library_name"], data["pipeline_tag"]) == (
        "apache-2.0", "transformers", "text-generation",
    )  # fmt: skip
    assert {"thaw", "garl"} <= set(data["tags"])
    [model] = data["model-index"]
    assert model["name"] == "finqa"
    found = {
        (each["dataset"]["split"], metric["type"]): metric for each in model["results"] for metric in each["metrics"]
    }
    assert {key: metric["value"] for key, metric in found.items()} == {
        ("test", "maj@16"): 50.0, ("test", "pass@1"): 30.0, ("november", "maj@16"): 25.0,
    }  # fmt: skip
    assert found["test", "maj@16"]["args"] == {"interval_95_percent": [45.0, 55.1]}
    assert "args" not in found["test", "pass@1"]
    types = {each["dataset"]["split"]: each["dataset"]["type"] for each in model["results"]}
    assert types == {"test": "dreamerdeo/finqa", "november": "finqa"}
    assert len(card.data.eval_results or ()) == 3


def test_the_text_tells_how_it_was_made() -> None:
    text = model_card(facts(*PUBLISHED), "me/finqa").text
    for told in (
        "| arm | `garl-q0.75` |", "| step | 50 of 4 |", "**Forecast.** It was expected.", "- git commit: `abc`",
        "| train.learning_rate | `0.0005` |", "| test | 30.0 | 50.0 [45.0, 55.1] |", "10% of the training answers",
        "[Qwen/Qwen3-0.6B](https://huggingface.co/Qwen/Qwen3-0.6B)", "| november |  | 25.0 |",
    ):  # fmt: skip
        assert told in text
    assert "\n\n\n" not in text.strip()


def test_a_card_is_the_same_every_time_and_tells_nothing_of_the_machine(tmp_path: Path) -> None:
    found = facts(f"model.name={tmp_path}", f"task.path={tmp_path}")
    card = str(model_card(found, "me/skills"))
    assert card == str(model_card(replace(found), "me/skills"))
    assert str(tmp_path) not in card
    assert "base_model" not in card
    found = facts("rollout.engine=vllm", "rollout.placement=http://10.0.0.7:8000", f"rollout.weights_folder={tmp_path}")
    card = str(model_card(found, "me/skills"))
    assert "10.0.0.7" not in card
    assert str(tmp_path) not in card


def test_what_is_not_known_is_not_told() -> None:
    card = model_card(Facts("folder"), "me/folder")
    assert set(card.data.to_dict()) == {"library_name", "pipeline_tag"}
    assert "It was not evaluated." in card.text
    assert "Nothing is written down of how it was trained." in card.text


@pytest.mark.parametrize("found", [facts(), facts("task.start=warm"), Facts("folder")], ids=["cold", "warm", "unknown"])
def test_the_lines_that_load_it_work(found: Facts, embedded: Path) -> None:
    code = model_card(found, "me/skills").text.split("```python\n")[1].split("```")[0]
    assert code.count("me/skills") == 2
    names: dict[str, object] = {}
    exec(code.replace("me/skills", str(embedded)).replace('"..."', '"w1234"'), names)
    assert names["written"] in (names["rationale"], f"{names['rationale']}</think>{names['answer']}")


def test_the_lines_of_a_chat_model_work(embedded: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for file in embedded.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = "{{ messages[0].content }}{{ 'x' if add_generation_prompt and enable_thinking }}"
    tokenizer.save_pretrained(tmp_path)
    card = model_card(replace(facts("task.start=warm"), template=True), "me/skills")
    code = card.text.split("```python\n")[1].split("```")[0]
    names: dict[str, object] = {}
    exec(code.replace("me/skills", str(tmp_path)).replace('"..."', '"w1234"'), names)
    assert tokenizer.decode(names["inputs"]["input_ids"][0]) == "w1234x"  # type: ignore[index]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("# A model\n", "does not begin with a block of YAML"),
        ("---\nlicense: [mit\n---\n", "has metadata that the hub cannot read"),
        ("---\n- mit\n---\n", "has metadata that the hub cannot read"),
    ],
)
def test_what_is_no_card_is_told(content: str, told: str) -> None:
    with pytest.raises(UserError, match=f"README.md {told}"):
        read_card(content, "README.md")
