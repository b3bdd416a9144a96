"""What is loaded, what is refused, and the ids between prompt, rationale and answer."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from components.config import ModelSettings
from components.errors import UserError
from components.policy.base import make_base
from components.policy.embedded import build_model, build_tokenizer
from components.policy.model import Codec, load_model, load_tokenizer
from components.policy.saving import save_policy, write_weights
from components.rollout.weights import weight_names
from tests.conftest import small_settings

pytestmark = pytest.mark.usefixtures("one_thread")


TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% if enable_thinking %}<think>{% endif %}{% endif %}"
)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture
def folder(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A policy as it is saved."""
    save_policy(build_model(tokenizer, seed=1), tokenizer, tmp_path / "policy")
    return tmp_path / "policy"


def settings(**others: str) -> ModelSettings:
    return small_settings().model.model_copy(update=others)


# Loading and saving


def test_a_saved_policy_comes_back_bit_for_bit(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    saved, loaded = build_model(tokenizer, seed=1).state_dict(), load_model(folder).state_dict()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    assert load_tokenizer(folder)("3142?<think>é")["input_ids"] == tokenizer("3142?<think>é")["input_ids"]
    assert sorted(path.suffix for path in folder.iterdir()) == [".json"] * 4 + [".safetensors"]


def test_the_state_has_the_tied_head_and_it_is_the_embedding(folder: Path) -> None:
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    state = load_model(folder).state_dict()
    assert state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr()


def test_a_large_policy_is_several_files(folder: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = build_model(tokenizer, seed=1)
    one = load_file(folder / "model.safetensors")
    shutil.copytree(folder, tmp_path / "several")
    (tmp_path / "several/model.safetensors").unlink()
    largest = max(weight.nbytes for weight in one.values())
    write_weights(one.items(), tmp_path / "several", file_bytes=largest)
    files = sorted((tmp_path / "several").glob("*.safetensors"))
    assert files[-1].name == f"model-{len(files):05d}-of-{len(files):05d}.safetensors"
    assert len(files) > 2
    assert all(sum(weight.nbytes for weight in load_file(file).values()) <= largest for file in files)
    loaded = load_model(tmp_path / "several").state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in model.state_dict().items())
    assert weight_names(tmp_path / "several") == weight_names(folder)


def test_the_dtype_is_the_one_asked_for(folder: Path) -> None:
    assert {weight.dtype for weight in load_model(folder).state_dict().values()} == {torch.float32}
    assert {weight.dtype for weight in load_model(folder, dtype="bfloat16").state_dict().values()} == {torch.bfloat16}


def leave_only_a_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def cut_the_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def drop_a_weight(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights["model.norm.weight"]
    save_file(weights, path, metadata={"format": "pt"})


def change_a_shape(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"intermediate_size": 128', '"intermediate_size": 64'))


def ask_for_remote_code(folder: Path) -> None:
    (folder / "mine.py").write_text(f"open({str(folder / 'was_run')!r}, 'w')")
    auto_map = '{"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}'
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"model_type": "qwen3"', f'"model_type": "mine", "auto_map": {auto_map}'))


def make_a_shape_a_word(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"intermediate_size": 128', '"intermediate_size": "wide"'))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (make_a_shape_a_word, "intermediate_size"),
        (leave_only_a_pickle, "no file named model.safetensors"),
        (cut_the_weights, "deserializing"),
        (drop_a_weight, r"lack model\.norm\.weight"),
        (change_a_shape, "mismatched"),
        (ask_for_remote_code, "custom code"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(damage, reason: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(UserError, match=rf"^no model can be loaded from '{folder}': [^\n]*{reason}[^\n]*$"):
        load_model(folder)
    assert not (folder / "was_run").exists()


@pytest.mark.parametrize(("load", "what"), [(load_model, "model"), (load_tokenizer, "tokenizer")])
def test_a_folder_that_is_missing_or_empty_is_refused(load, what: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=rf"^no {what} can be loaded from '{tmp_path}/none': there is no such folder\.$"
    ):
        load(tmp_path / "none")
    with pytest.raises(UserError, match=rf"^no {what} can be loaded from '{tmp_path}': [^\n]+$"):
        load(tmp_path)


def test_the_base_may_be_any_folder(folder: Path, tmp_path: Path) -> None:
    make_base(small_settings(f"model.name={folder}"), tmp_path / "base")
    files = [path.name for path in folder.iterdir()]
    assert sorted(files) == sorted(path.name for path in (tmp_path / "base").iterdir())
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "base/model.safetensors").read_bytes()


# Ids


def test_a_gold_answer_ends_the_turn_and_follows_its_prefix(tokenizer: PreTrainedTokenizerFast) -> None:
    plain = Codec(tokenizer, settings(), chat=False)
    end = tokenizer.convert_tokens_to_ids("<end>")
    assert plain.markers.end_of_turn == (end,)
    assert plain.gold_answer("a:12") == (*tokenizer("a:12")["input_ids"], end)
    prefixed = Codec(tokenizer, settings(answer_prefix="\n\n"), chat=False)
    assert prefixed.gold_answer("a:12") == (*tokenizer("\n\na:12")["input_ids"], end)
    assert prefixed.prompt("12?") == plain.prompt("12?")
    assert prefixed.answer_text(prefixed.gold_answer("a:12")) == "a:12"
    assert plain.text((*plain.prompt("1?<think>"), end)) == "1?<think><end>"


def test_markers_are_the_tokenizers_own(tokenizer: PreTrainedTokenizerFast) -> None:
    markers = Codec(tokenizer, settings(), chat=False).markers
    assert markers.end_of_thinking == (tokenizer.convert_tokens_to_ids("</think>"),)
    assert markers.pad == tokenizer.convert_tokens_to_ids("<pad>")
    worded = Codec(tokenizer, settings(end_of_thinking="\nSo:"), chat=False).markers
    assert worded.end_of_thinking == tuple(tokenizer("\nSo:")["input_ids"])
    tokenizer.pad_token = None
    assert Codec(tokenizer, settings(), chat=False).markers.pad == markers.end_of_turn[0]


def test_a_model_without_markers_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match=r"model\.end_of_thinking"):
        Codec(tokenizer, settings(end_of_thinking=""), chat=False)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="eos_token"):
        Codec(tokenizer, settings(), chat=False)


def test_a_warm_prompt_is_a_chat_with_thinking_on(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = TEMPLATE
    warm, cold = (Codec(tokenizer, settings(), chat=chat) for chat in (True, False))
    assert warm.text(warm.prompt("12?")) == "[user]12?[assistant]<think>"
    assert cold.text(cold.prompt("12?")) == "12?"
    assert warm.gold_answer("12") == cold.gold_answer("12")
    tokenizer.chat_template = None
    assert Codec(tokenizer, settings(), chat=True).prompt("12?") == cold.prompt("12?")


def test_what_a_tokenizer_puts_before_a_text_comes_once_and_before_prompts_alone(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    first = tokenizer.convert_tokens_to_ids("<pad>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<pad> $A", special_tokens=[("<pad>", first)]
    )
    tokenizer.chat_template = "<pad>" + TEMPLATE
    warm, cold = (Codec(tokenizer, settings(), chat=chat) for chat in (True, False))
    assert warm.text(warm.prompt("12?")) == "<pad>[user]12?[assistant]<think>"
    assert cold.text(cold.prompt("12?")) == "<pad>12?"
    assert cold.text(cold.gold_answer("12")) == "12<end>"
    assert cold.markers.end_of_thinking == (tokenizer.convert_tokens_to_ids("</think>"),)


def test_the_ids_of_qwen3(qwen3: Path) -> None:
    tokenizer = load_tokenizer(qwen3)
    codec = Codec(tokenizer, settings(answer_prefix="\n\n"), chat=True)
    assert codec.markers.end_of_thinking == (151668,)
    assert codec.markers.end_of_turn == (151645,)
    assert Codec(tokenizer, settings(), chat=False).prompt("Hello, world!") == (9707, 11, 1879, 0)
    # <|im_start|> user \n Hello , world ! <|im_end|> \n <|im_start|> assistant \n, and no empty thought behind it
    turn = (151644, 872, 198, 9707, 11, 1879, 0, 151645, 198, 151644, 77091, 198)
    assert codec.prompt("Hello, world!") == turn
    assert codec.gold_answer("12") == (271, 16, 17, 151645)
    assert codec.answer_text(codec.gold_answer("12")) == "12"


def test_an_empty_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=rf"^no tokenizer can be loaded from '{folder}': [^\n]*$"):
        load_tokenizer(folder)


def test_code_that_a_model_names_is_not_passed_on(folder: Path, tmp_path: Path) -> None:
    for file in ("config.json", "tokenizer_config.json"):
        described = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(described | {"auto_map": {"AutoConfig": "mine.Config"}}))
    save_policy(load_model(folder), load_tokenizer(folder), tmp_path / "saved")
    for file in ("config.json", "tokenizer_config.json"):
        assert "auto_map" in (folder / file).read_text()
        assert "auto_map" not in (tmp_path / "saved" / file).read_text()
