"""The Scorer against the plain way: each row as one full sequence through the model, alone, no padding, no cache."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from components.errors import UserError
from components.policy import logprobs, packed_attention
from components.policy.logprobs import Row, Scorer, collate, sequence_logprobs
from tests.components.models import add_noise, plain_logprobs

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
VOCABULARY = 23


@dataclass(frozen=True)
class Case:
    """Prompts and the rows of each; ids are made up from the lengths alone."""

    prompts: list[tuple[int, ...]]
    groups: list[list[Row]]

    @property
    def rows(self) -> list[tuple[tuple[int, ...], Row]]:
        return [(prompt, row) for prompt, rows in zip(self.prompts, self.groups, strict=True) for row in rows]


def case(*groups: tuple[int, list[tuple[int, int, int]]]) -> Case:
    """A group is the length of its prompt and its rows: lengths of rationale and answer, and how much was forced."""
    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(VOCABULARY, (length,), generator=generator).tolist())

    return Case(
        prompts=[ids(length) for length, _ in groups],
        groups=[[Row(ids(thought), ids(answer), forced) for thought, answer, forced in rows] for _, rows in groups],
    )


CASES = {
    "one row": case((4, [(3, 2, 0)])),
    "prompts of different lengths": case((2, [(3, 2, 0)] * 2), (9, [(3, 2, 0)] * 2), (5, [(3, 2, 0)] * 2)),
    "prompts of one id": case((1, [(3, 2, 0)] * 3), (1, [(4, 2, 0)] * 3)),
    "a prompt of one id beside long ones": case((7, [(3, 2, 0)] * 2), (1, [(3, 2, 0)] * 2), (2, [(3, 2, 0)] * 2)),
    "rationales of different lengths": case((4, [(1, 2, 0), (12, 2, 0), (5, 2, 0)])),
    "answers of different lengths": case((4, [(3, 1, 0), (3, 9, 0), (3, 4, 0)])),
    "forced ends": case((4, [(5, 2, 0), (5, 2, 1), (6, 3, 2), (4, 2, 4)])),
    "empty answers": case((4, [(3, 0, 0), (5, 0, 1), (2, 3, 0)]), (3, [(4, 0, 0)])),
    "groups of different sizes": case((4, [(3, 2, 0)]), (6, [(3, 2, 0)] * 5), (5, [(3, 2, 0)] * 2)),
    "all at once": case(
        (3, [(5, 2, 0), (2, 4, 1), (9, 0, 0)]), (11, [(1, 3, 0)]), (1, [(4, 2, 2), (7, 1, 0)]), (6, [(3, 6, 0)] * 4)
    ),
}
# Rows that share some or all of their ids, by accident or because a policy has grown sure of itself.
_SAME = Row((3, 4, 5), (6, 7), 0)
CASES["rows alike"] = Case(
    [(1, 2), (1, 2), (8,)],
    [
        [_SAME, Row((3, 4, 5), (6, 9), 0), _SAME, Row((3, 4), (5, 6, 7), 0), Row((3, 4, 5), (6, 7), 2)],
        [_SAME, _SAME, Row((3,), (), 0), Row((3,), (4,), 0)],
        [_SAME] * 4,
    ],
)
by_case = pytest.mark.parametrize("example", CASES.values(), ids=CASES.keys())


def tiny_policy(**others: Any) -> PreTrainedModel:
    """Weights large enough for attention, positions and norms to matter; others: of its configuration."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        head_dim=8,
        initializer_range=0.4,
        **{"num_key_value_heads": 2, "tie_word_embeddings": True} | others,
    )
    model = Qwen3ForCausalLM(config)
    add_noise((weight for name, weight in model.named_parameters() if "norm" in name), 0.3)
    return model


def plain(policy: PreTrainedModel, prompt: tuple[int, ...], row: Row) -> tuple[Tensor, Tensor]:
    """log p of the rationale's sampled ids and of the answer, from this sequence alone."""
    every = plain_logprobs(policy, prompt, [*row.rationale, *row.answer])
    thought = len(row.rationale)
    return every[: thought - row.forced_end].sum(), every[thought:].sum()


def scored(scorer: Scorer, example: Case) -> tuple[Tensor, Tensor]:
    batch = scorer.collate(example.prompts, example.groups)
    return sequence_logprobs(scorer(batch), batch)


def weighted(rationale: Tensor, answer: Tensor) -> Tensor:
    """A weighted sum of both, as every estimator forms one: some weights are negative, some zero."""
    weights = torch.linspace(-2, 3, 2 * len(rationale), dtype=torch.float64)
    weights[1] = 0
    return (weights[: len(rationale)] * rationale).sum() + (weights[len(rationale) :] * answer).sum()


def gradients(policy: PreTrainedModel, total: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*policy.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(total, parameters), strict=True))


# Relative errors of values and of gradients. In float64 Qwen3 still norms, and takes the norms' gradients, in float32.
FLOAT32, FLOAT64 = (1e-5, 1e-5), (1e-12, 3e-7)


def check(policy: PreTrainedModel, example: Case, tolerances: tuple[float, float] = FLOAT32) -> None:
    """Values row by row and gradients parameter by parameter, against the plain way in float64."""
    reference = deepcopy(policy).double()
    rationale, answer = map(torch.stack, zip(*(plain(reference, *row) for row in example.rows), strict=True))
    found_rationale, found_answer = scored(Scorer(policy), example)
    torch.testing.assert_close(found_rationale, rationale, rtol=tolerances[0], atol=0)
    torch.testing.assert_close(found_answer, answer, rtol=tolerances[0], atol=0)

    true = gradients(reference, weighted(rationale, answer))
    found = gradients(policy, weighted(found_rationale, found_answer))
    for name, gradient in true.items():
        error = (found[name].double() - gradient).norm() / gradient.norm()
        assert error < tolerances[1], f"{name}: {error:.1e}"


@by_case
@pytest.mark.parametrize(
    ("dtype", "tolerances"), [(torch.float32, FLOAT32), (torch.float64, FLOAT64)], ids=["float32", "float64"]
)
def test_values_and_gradients_are_those_of_the_plain_way(
    example: Case, dtype: torch.dtype, tolerances: tuple[float, float]
) -> None:
    check(tiny_policy().to(dtype), example, tolerances)


@by_case
def test_a_model_that_sees_only_the_last_few_ids_is_scored_without_sharing(example: Case) -> None:
    policy = tiny_policy(use_sliding_window=True, sliding_window=3, max_window_layers=1)
    assert policy.config.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]
    check(policy.double(), example, FLOAT64)


SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.4,
}


@pytest.mark.parametrize(
    "config",
    [LlamaConfig(**SIZES), MistralConfig(**SIZES, sliding_window=3), MistralConfig(**SIZES, sliding_window=None)],
    ids=["Llama", "Mistral with a window", "Mistral without a window"],
)
def test_models_of_other_families(config: PreTrainedConfig) -> None:
    torch.manual_seed(0)
    check(AutoModelForCausalLM.from_config(config), CASES["all at once"])


@pytest.mark.parametrize(
    "config",
    [
        GraniteConfig(**SIZES, logits_scaling=8.0),
        CohereConfig(**SIZES, logit_scale=0.1, eos_token_id=1),
        Gemma2Config(**SIZES, final_logit_softcapping=30.0),
    ],
    ids=["Granite", "Cohere", "Gemma2"],
)
def test_a_model_that_changes_its_logits_behind_the_head_is_refused(config: PreTrainedConfig) -> None:
    with pytest.raises(UserError, match=r"^the logits of \w+ForCausalLM are not those of its lm_head alone; [^\n]*\.$"):
        Scorer(AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize(
    "others",
    [{"tie_word_embeddings": False}, {"num_key_value_heads": 4}, {"num_key_value_heads": 1}, {"attention_bias": True}],
    ids=["an untied head", "as many key-value heads", "one key-value head", "attention with a bias"],
)
def test_other_shapes_of_the_model(others: dict[str, Any]) -> None:
    check(tiny_policy(**others), CASES["all at once"])


def test_a_scored_model_still_gives_its_own_logits() -> None:
    """The sampler runs the very model that the Scorer has changed."""
    ids = torch.tensor([[0, 0, 3, 1, 4], [1, 5, 9, 2, 6]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    policy = tiny_policy()
    before = policy(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    scored(Scorer(policy), CASES["all at once"])
    torch.testing.assert_close(policy(input_ids=ids, attention_mask=mask).logits[mask.bool()], before)


@by_case
@pytest.mark.parametrize("chunk", [1, 5])
def test_more_tokens_than_fit_one_chunk_of_the_vocabulary(
    example: Case, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "LOGITS_AT_ONCE", chunk * VOCABULARY)
    check(tiny_policy(), example)
    scorer, sizes = Scorer(tiny_policy()), []
    scorer.policy.lm_head.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[0]))
    total = weighted(*scored(scorer, example))
    assert max(sizes) <= chunk
    assert sum(sizes) == _distinct_predictions(example)
    # The backward pass makes the logits again instead of keeping them all.
    forward = sum(sizes)
    total.backward()
    assert sum(sizes) == (2 * forward if forward > chunk else forward)


def _distinct_predictions(example: Case) -> int:
    """How many pairs of a context and a scored id there are, told apart group by group."""
    found = set()
    for group, rows in enumerate(example.groups):
        for row in rows:
            ids, thought = (*row.rationale, *row.answer), len(row.rationale)
            scored_ids = (*range(thought - row.forced_end), *range(thought, len(ids)))
            # What rows that are not alike throughout have in common is run for each, but for the first id.
            found |= {(group, row.read if index else (), index, ids[index]) for index in scored_ids}
    return len(found)


def test_rows_alike_are_run_once() -> None:
    example = CASES["rows alike"]
    batch = collate(example.prompts, example.groups, CPU)
    read = [[(3, 4, 5, 6)], [(3, 4, 5, 6), (), (3,)], [(3, 4, 5, 6)]]
    assert batch.ids.numel() == 2 + 2 + 1 + sum(len(ids) for rows in read for ids in rows)
    assert batch.rows == 13
    assert len(batch.target) == _distinct_predictions(example) < len(batch.scored)


def test_scoring_without_gradients_gives_the_same_values() -> None:
    scorer, example = Scorer(tiny_policy()), CASES["all at once"]
    with torch.no_grad():
        alone = scored(scorer, example)
    assert not alone[0].requires_grad
    torch.testing.assert_close(alone, tuple(values.detach() for values in scored(scorer, example)), rtol=1e-6, atol=0)


def test_a_prompt_is_run_once_for_all_rows_of_its_group() -> None:
    scorer, example = Scorer(tiny_policy()), case((200, [(3, 2, 0)] * 16), (150, [(3, 2, 0)] * 16))
    ids = []
    scorer.policy.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: ids.append(inputs[0].numel()))
    scored(scorer, example)
    assert sum(ids) == 200 + 150 + 32 * (3 + 2 - 1)


def test_sums_over_ids_are_float64_and_leave_out_what_does_not_count() -> None:
    batch = collate([(1, 2)], [[Row((3, 4, 5), (6,), 1), Row((3,), (), 0)]], CPU)
    assert batch.ids.tolist() == [[1, 2, 3, 4, 5]]  # the last id of a row is never read
    assert batch.target[batch.scored].tolist() == [3, 4, 6, 3]  # not the forced 5
    assert batch.before[batch.scored].tolist() == [1, 2, 4, 1]
    rationale, answer = sequence_logprobs(torch.tensor([-1.0, -2.0, -8.0, -16.0]), batch)
    assert rationale.dtype == answer.dtype == torch.float64
    assert rationale.tolist() == [-3, -16]
    assert answer.tolist() == [-8, 0]


def test_log_probabilities_are_float32() -> None:
    example, scorer = CASES["all at once"], Scorer(tiny_policy())
    batch = scorer.collate(example.prompts, example.groups)
    assert scorer(batch).dtype == torch.float32
    assert scorer(batch).shape == batch.scored.shape == batch.row.shape


def test_little_of_a_packed_batch_is_empty() -> None:
    random = torch.Generator().manual_seed(0)
    lengths = torch.empty(64).log_normal_(3.6, 1.0, generator=random).clamp(2, 512).int().tolist()
    example = case((30, [(length, 2, 0) for length in lengths[:32]]), (90, [(length, 2, 0) for length in lengths[32:]]))
    batch = collate(example.prompts, example.groups, CPU)
    assert batch.padding < 0.1
    assert batch.ids.numel() == 30 + 90 + sum(lengths) + 64
    assert collate(example.prompts, example.groups, CPU, share=False).padding > 0.5
    check(tiny_policy().double(), example, FLOAT64)


@by_case
def test_plain_arithmetic_stands_in_where_a_device_has_no_fused_kernel(
    example: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_attention, "_is_fused", lambda _: False)
    check(tiny_policy().double(), example, FLOAT64)


@by_case
def test_attention_of_variable_length_gives_the_same(example: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the words of PyTorch's documentation, since its kernel is for GPUs alone."""
    monkeypatch.setattr(logprobs, "takes_varlen", lambda *_: True)
    monkeypatch.setattr(packed_attention, "varlen_attn", varlen_by_hand)
    check(tiny_policy().double(), example, FLOAT64)


def varlen_by_hand(
    query: Tensor, key: Tensor, value: Tensor, query_ends: Tensor, key_ends: Tensor, most_queries: int, most_keys: int,
    *, scale: float, window_size: tuple[int, int], enable_gqa: bool,
) -> Tensor:  # fmt: skip
    """Sequence by sequence: causal, with the last query at the last key."""
    assert (window_size, enable_gqa) == ((-1, 0), True)
    assert query_ends.dtype == key_ends.dtype == torch.int32
    assert (query_ends.diff().max(), key_ends.diff().max()) == (most_queries, most_keys)
    assert (len(query), len(key)) == (query_ends[-1], key_ends[-1])
    repeat, outputs = query.shape[1] // key.shape[1], []
    for q, k, v in zip(
        query.split(query_ends.diff().tolist()),
        key.repeat_interleave(repeat, 1).split(key_ends.diff().tolist()),
        value.repeat_interleave(repeat, 1).split(key_ends.diff().tolist()),
        strict=True,
    ):
        scores = torch.einsum("qhw,khw->hqk", q, k) * scale
        later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1 + len(k) - len(q))
        outputs.append(torch.einsum("hqk,khw->qhw", scores.masked_fill(later, -torch.inf).softmax(-1), v))
    return torch.cat(outputs)
