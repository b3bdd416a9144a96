"""The peak memory of the log-probabilities of 1,024 tokens at Qwen3's vocabulary, and their gradients."""

import json
import sys
from pathlib import Path

import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from components.policy.logprobs import Scorer

TOKENS, VOCABULARY, WIDTH = 1024, 151_936, 16


def plain(policy: PreTrainedModel, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return policy.lm_head(hidden).log_softmax(-1).gather(1, targets[:, None])[:, 0]


def main(way: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    policy = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
            num_key_value_heads=1, head_dim=8, tie_word_embeddings=True,
        )
    )  # fmt: skip
    hidden = torch.randn(TOKENS, WIDTH).requires_grad_()
    targets, weights = torch.randint(VOCABULARY, (TOKENS,)), torch.randn(TOKENS)
    scorer = Scorer(policy)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak so far is forgotten, see proc(5)
    before = _status("VmRSS")
    found = plain(policy, hidden, targets) if way == "plain" else scorer._token_logprobs(hidden, targets)
    (found * weights).sum().backward()
    peak = _status("VmHWM") - before
    head = policy.lm_head.weight.grad
    assert hidden.grad is not None
    assert head is not None
    sums = [found.double().sum(), hidden.grad.double().norm(), (hidden.grad[::37] * weights[::37, None]).double().sum(),
            head.double().norm(), head[targets[:500]].double().sum()]  # fmt: skip
    print(json.dumps({"peak": peak, "sums": [value.item() for value in sums]}))


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    main(sys.argv[1])
