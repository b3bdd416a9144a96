"""GARL at any commitment q in TRL's GRPOTrainer: what Thaw's `components.objective` takes in somebody else's loop.

    trainer = GARLTrainer(
        model=..., args=GRPOConfig(...), processing_class=tokenizer, q=0.75,
        train_dataset=...,  # with the columns prompt, a text, and answer, the gold answer
    )
    trainer.train()

TRL samples completions. What stands before </think> in one is its rationale, and the gold answer takes the place of
what stands behind it: no reward is needed. GRPO weighs all tokens of a completion alike; GARL has one weight for the
rationale and one for the answer. TRL takes weights token by token, and all else is its own: batches, loss, optimizer.

Made for one update on each batch (GRPOConfig.num_iterations = 1) and for generation by Transformers; Thaw itself also
shares the prompt among the rollouts of a group, and corrects for a sampler that differs.
"""

from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]

from components.objective.estimators import garl, log_mean


class GARLTrainer(GRPOTrainer):
    """GRPOTrainer whose gradient is GARL's.

    q: the commitment, from 0 (RL) to 1 (marginal likelihood).
    end_of_thinking: the text that ends a rationale; a completion without it is a rationale that is ended there.
    """

    def __init__(self, *, q: float, end_of_thinking: str = "</think>", **options: Any) -> None:
        super().__init__(reward_funcs=_nothing, **options)
        if self.use_vllm or self.num_iterations > 1 or self.max_completion_length is None:
            raise ValueError("GARLTrainer updates once on a batch, which Transformers samples, of at most a set length")
        self.q, self.longest = q, self.max_completion_length
        self.tokenizer: Any = self.processing_class
        self.end_of_thinking = self._ids(end_of_thinking)
        # The one loss of TRL's that has no length in it but a constant.
        self.loss_type = "dr_grpo"

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's batch, with a weight for each token in place of one for each completion."""
        self.gold = [[*self._ids(item["answer"]), self.tokenizer.eos_token_id] for item in inputs]
        batch = super()._generate_and_score_completions(inputs)
        thought, is_answer = self._parts(batch["completion_mask"].bool())
        log_w = (self._logprobs(batch) * is_answer).double().sum(1)
        groups = log_w.view(-1, self.num_generations)
        weights = garl(groups, self.q)
        tokens = weights.score.view(-1, 1) * thought + weights.path.view(-1, 1) * is_answer
        # "dr_grpo" divides by the longest completion that may be sampled.
        batch["advantages"] = (tokens * self.longest).to(batch["advantages"].dtype)
        self._metrics["train"]["log_p"].append(log_mean(groups).mean().item())
        return batch

    def _generate_single_turn(self, *arguments: Any, **options: Any) -> tuple[list[list[int]], None]:
        """Completions whose answer is the gold one."""
        sampled, _ = super()._generate_single_turn(*arguments, **options)
        rationales = [self._rationale(ids) for ids in sampled]
        self.forced = [len(self.end_of_thinking) * (not ended) for _, ended in rationales]
        return [[*ids, *gold] for (ids, _), gold in zip(rationales, self.gold, strict=True)], None

    def _rationale(self, ids: list[int]) -> tuple[list[int], bool]:
        """What stands before the answer, up to and with the end of thinking, and whether the model wrote that end."""
        end, size = self.end_of_thinking, len(self.end_of_thinking)
        for place in range(len(ids) - size + 1):
            if ids[place : place + size] == end:
                return ids[: place + size], True
        return [token for token in ids if token != self.tokenizer.eos_token_id] + end, False

    def _parts(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Which tokens of each completion were thought, and which are its answer; an end that was forced is neither."""
        size, gold, forced = (
            torch.tensor(each, device=mask.device)[:, None]
            for each in (mask.sum(1).tolist(), [len(ids) for ids in self.gold], self.forced)
        )
        place = torch.arange(mask.shape[1], device=mask.device)
        return place < size - gold - forced, (place >= size - gold) & mask

    @torch.no_grad()
    def _logprobs(self, batch: dict[str, Any]) -> Tensor:
        """log p of every token of the completions, [rollouts, tokens]."""
        ids, mask = (
            torch.cat([batch[f"prompt_{name}"], batch[f"completion_{name}"]], dim=1) for name in ("ids", "mask")
        )
        size = self.args.per_device_train_batch_size
        kept = batch["completion_ids"].shape[1]
        return self._get_per_token_logps_and_entropies(self.model, ids, mask, kept, batch_size=size)[0]


def _nothing(completions: list[str], **_: Any) -> list[float]:
    """TRL wants a reward function; GARL's reward is the likelihood of the gold answer, which has to be computed."""
    return [0.0] * len(completions)
