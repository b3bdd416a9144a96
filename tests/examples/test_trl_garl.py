"""The example for TRL: its step is the one that Thaw's own trainer would take on the same rollouts."""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import GRPOConfig  # pyright: ignore[reportPrivateImportUsage]

from components.config import Arm
from components.policy.embedded import teach
from components.rollout.engine import Rollout
from components.training.batches import Group
from components.training.trainer import Trainer
from examples.trl_garl import GARLTrainer
from tests.conftest import small_settings

pytestmark = pytest.mark.slow
QUESTIONS = [("w4213", "a:1234"), ("x4213", "b=3124")]
M, MOST = 4, 20


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Gradient(TrainerCallback):
    """Keeps what TRL has accumulated when it is about to take the optimizer step."""

    def on_pre_optimizer_step(self, *_: object, model: PreTrainedModel, **__: object) -> None:
        self.gradient = torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


class Seen(GARLTrainer):
    """Keeps the batch that a step was made of, before TRL shuffles and cuts it."""

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.seen = dict(super()._generate_and_score_completions(inputs))
        return self.seen


@pytest.fixture(scope="module")
def taught() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model that has heard of </think>, so that some rationales end and others are ended."""
    settings = small_settings("teaching.steps=25", "teaching.batch_size=32")
    return teach(settings.teaching, settings.task.start)


@pytest.mark.parametrize("q", [0.25, 1.0])
def test_a_step_in_trl_is_that_of_thaw(q: float, taught: tuple[Any, Any], tmp_path: Path) -> None:
    from datasets import Dataset

    model, tokenizer, before_step = deepcopy(taught[0]), taught[1], Gradient()
    settings = GRPOConfig(
        output_dir=str(tmp_path), num_generations=M, max_completion_length=MOST, max_steps=1, use_cpu=True, bf16=False,
        per_device_train_batch_size=4, gradient_accumulation_steps=2, optim="sgd", max_grad_norm=0.0,
        report_to=[], save_strategy="no", disable_tqdm=True, seed=1,
        dataloader_pin_memory=False, gradient_checkpointing=False,
    )  # fmt: skip
    data = Dataset.from_list([{"prompt": prompt, "answer": answer} for prompt, answer in QUESTIONS])
    trainer = Seen(
        q=q, model=model, args=settings, processing_class=tokenizer, train_dataset=data, callbacks=[before_step]
    )
    trainer.train()

    groups = [thaws(trainer, tokenizer, first) for first in (0, M)]
    assert {rollout.forced_end for group in groups for rollout in group.rollouts} == {0, 1}, "one sort of end alone"
    own = Trainer(deepcopy(taught[0]), Arm.parse(f"garl-q{q:g}"), small_settings().train, seed=0)
    gradient, report = own.gradient(groups, 0)
    own.close()
    assert report.without_gradient == 0
    torch.testing.assert_close(before_step.gradient, gradient, rtol=1e-3, atol=1e-5 * gradient.abs().max().item())


def thaws(trainer: Seen, tokenizer: PreTrainedTokenizerBase, first: int) -> Group:
    """M rows of TRL's batch as a group of Thaw's; the answer is told from the prompt, not from what TRL was given."""
    rollouts, prompt, answer = [], [], ()
    for row in range(first, first + M):
        prompt, completion = (
            trainer.seen[f"{name}_ids"][row][trainer.seen[f"{name}_mask"][row].bool()].tolist()
            for name in ("prompt", "completion")
        )
        gold = dict(QUESTIONS)[tokenizer.decode(prompt)]
        answer = (*tokenizer(gold)["input_ids"], tokenizer.eos_token_id)
        assert completion[-len(answer) :] == [*answer]
        rationale = completion[: -len(answer)]
        assert rationale[-1:] == tokenizer("</think>")["input_ids"]
        rollouts.append(Rollout((*prompt,), (*rationale,), (), (0.0,) * len(rationale), "stop", trainer.forced[row]))
    return Group((*prompt,), rollouts, [answer] * M, None)
