"""Both engines on a real tiny model: what they sample, that they say its true log-probability, and where they stop."""

from collections import Counter
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.stats import chi2, chi2_contingency
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from components.data.example import Example
from components.errors import TemporaryError, UserError
from components.policy.markers import Markers
from components.policy.model import Codec
from components.policy.saving import save_policy
from components.rollout.engine import Rollout, RolloutEngine, Sampling
from components.rollout.sample import sample as sample_examples
from components.rollout.transformers_engine import TransformersEngine
from components.rollout.vllm_engine import VllmEngine
from tests.components.models import add_noise
from tests.components.rollout.conftest import worst_error
from tests.conftest import small_settings

SAMPLING = Sampling(max_new_tokens=14, answer_reserve=6, seed=1)
TOLERANCE = 1e-4  # nats, of float32 in another order of summation


@pytest.fixture(scope="module")
def one_id(tokenizer: PreTrainedTokenizerFast) -> Markers:
    """The model's own markers, and a digit that ends a turn, so that turns end inside rationales too."""
    end, pad = ids(tokenizer, "<end>"), ids(tokenizer, "<pad>")
    return Markers(end_of_thinking=ids(tokenizer, "</think>"), end_of_turn=(*end, *ids(tokenizer, "7")), pad=pad[0])


@pytest.fixture(scope="module")
def two_ids(one_id: Markers, tokenizer: PreTrainedTokenizerFast) -> Markers:
    """A marker whose last id comes often without its first one."""
    return replace(one_id, end_of_thinking=ids(tokenizer, "8</think>"))


@pytest.fixture(scope="module")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One that is not vLLM's, as DeepSpeed founds it before the engine starts; it must outlive the engine."""
    store = tmp_path_factory.mktemp("store") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.all_reduce(torch.ones(1))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def vllm_module(
    process_group: None,  # noqa: ARG001
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    one_id: Markers,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[VllmEngine]:
    folder = tmp_path_factory.mktemp("policy")
    save_policy(policy, tokenizer, folder)
    random_state = torch.get_rng_state()
    with VllmEngine(folder, one_id, dtype="float32", timeout_seconds=60) as engine:
        assert torch.equal(random_state, torch.get_rng_state())
        yield engine


@pytest.fixture
def vllm(vllm_module: VllmEngine, policy: PreTrainedModel, one_id: Markers) -> VllmEngine:
    """The one vLLM engine of this file, with the policy's weights whatever the test before has loaded."""
    vllm_module.markers = one_id
    vllm_module.load_weights(policy.state_dict().items())
    return vllm_module


@pytest.fixture(params=["transformers", "vllm"])
def engine(request: pytest.FixtureRequest, policy: PreTrainedModel, one_id: Markers) -> RolloutEngine:
    if request.param == "vllm":
        return request.getfixturevalue("vllm")
    return TransformersEngine(deepcopy(policy), one_id, batch_rollouts=20_000)


@pytest.fixture(params=["one_id", "two_ids"])
def markers(request: pytest.FixtureRequest, engine: RolloutEngine) -> Markers:
    """The markers that `engine` works with."""
    engine.markers = request.getfixturevalue(request.param)
    return engine.markers


@pytest.fixture(scope="module")
def prompts(tokenizer: PreTrainedTokenizerFast) -> list[tuple[int, ...]]:
    """Of different lengths; the last one fills two blocks of vLLM's prefix cache."""
    return [ids(tokenizer, text) for text in ("3142?", "s5:3142?", "7?", "s0:9041?" * 40)]


def ids(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text)["input_ids"])


def sample(
    engine: RolloutEngine, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling = SAMPLING
) -> list[Rollout]:
    return [rollout for group in engine.generate(prompts, n, sampling) for rollout in group]


def changed(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """As if trained: every weight a little different, the norms too."""
    other, generator = deepcopy(model), torch.Generator().manual_seed(seed)
    add_noise(other.parameters(), 0.05, generator)
    return other


def count(sequence: Sequence[int], part: Sequence[int]) -> int:
    return sum(tuple(sequence[i : i + len(part)]) == tuple(part) for i in range(len(sequence)))


# Log-probabilities


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_logprobs_are_those_of_a_plain_forward(
    engine: RolloutEngine,
    markers: Markers,
    policy: PreTrainedModel,
    prompts: list[tuple[int, ...]],
    temperature: float,
) -> None:
    """Prompts of different lengths in one call, rows that finish at different times, forced ids and answers alike."""
    rollouts = sample(engine, prompts, 64, replace(SAMPLING, temperature=temperature))
    assert len({len(rollout.logprobs) for rollout in rollouts}) >= 5
    assert any(rollout.forced_end == len(markers.end_of_thinking) for rollout in rollouts)
    assert worst_error(policy, rollouts) < TOLERANCE


def test_new_weights_are_sampled_from_and_without_them_the_error_shows(
    engine: RolloutEngine, policy: PreTrainedModel, prompts: list[tuple[int, ...]]
) -> None:
    assert worst_error(policy, sample(engine, prompts, 8)) < TOLERANCE
    for update in range(10):
        trained = changed(policy, update)
        assert worst_error(trained, sample(engine, prompts, 8)) > 100 * TOLERANCE
        engine.load_weights(trained.state_dict().items())
        assert worst_error(trained, sample(engine, prompts, 8)) < TOLERANCE


# Distributions


def test_one_token_samples_follow_the_models_distribution(
    engine: RolloutEngine, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    prompt = ids(tokenizer, "3142?<think>r9318</think>")  # behind it many ids come, and not equally often
    sampling = Sampling(max_new_tokens=3, answer_reserve=2, seed=0, answers=False)
    rollouts = sample(engine, [prompt], 20_000, sampling)
    seen = torch.bincount(torch.tensor([rollout.rationale_ids[0] for rollout in rollouts]), minlength=260).double()
    with torch.no_grad():
        expected = 20_000 * policy(input_ids=torch.tensor([prompt])).logits[0, -1].double().softmax(-1)
    rare = expected < 5
    seen = torch.cat([seen[~rare], seen[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    assert len(seen) > 10
    assert expected.min() > 5
    statistic = ((seen - expected) ** 2 / expected).sum().item()
    assert chi2.sf(statistic, len(seen) - 1) > 0.001


@pytest.mark.parametrize("marker", ["one_id", "two_ids"])
def test_both_engines_sample_the_same_kinds_of_rollouts(
    vllm: VllmEngine,
    policy: PreTrainedModel,
    prompts: list[tuple[int, ...]],
    marker: str,
    request: pytest.FixtureRequest,
) -> None:
    vllm.markers = request.getfixturevalue(marker)
    transformers = TransformersEngine(policy, vllm.markers, batch_rollouts=20_000)
    kinds = [
        Counter(
            (rollout.forced_end, len(rollout.rationale_ids), len(rollout.answer_ids), rollout.finish_reason)
            for rollout in sample(engine, prompts[:2], 1000)
        )
        for engine in (vllm, transformers)
    ]
    common = [kind for kind in kinds[0] | kinds[1] if kinds[0][kind] + kinds[1][kind] >= 20]
    table = [[one[kind] for kind in common] for one in kinds]
    rare = [one.total() - sum(row) for one, row in zip(kinds, table, strict=True)]
    assert len(common) > 10
    assert chi2_contingency([[*row, other] for row, other in zip(table, rare, strict=True)]).pvalue > 0.001


def test_both_engines_have_the_same_majorities(
    vllm: VllmEngine, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    """maj@16, where the right answer is the most frequent of 64 samples: not always, so that a difference shows."""
    problems = [ids(tokenizer, f"w{1000 + 37 * i}?") for i in range(150)]
    transformers = TransformersEngine(policy, vllm.markers, batch_rollouts=20_000)
    gold = votes(transformers, problems, 64, seed=0)
    maj = []
    for engine in (vllm, transformers):
        right = [vote == truth for vote, truth in zip(votes(engine, problems, 16, seed=1), gold, strict=True)]
        maj.append(sum(right) / len(right))
    assert 0.1 < sum(maj) / 2 < 0.9
    assert abs(maj[0] - maj[1]) < 4 * (2 * 0.25 / len(problems)) ** 0.5


def votes(engine: RolloutEngine, problems: Sequence[Sequence[int]], n: int, seed: int) -> list[tuple[int, ...]]:
    """Of each problem the id that most of n samples begin their answer with."""
    groups = engine.generate(problems, n, replace(SAMPLING, seed=seed))
    return [Counter(rollout.answer_ids[:1] for rollout in group).most_common(1)[0][0] for group in groups]


# The budget


def test_rationales_and_answers_end_where_they_must(
    engine: RolloutEngine, markers: Markers, prompts: list[tuple[int, ...]]
) -> None:
    rollouts = sample(engine, prompts, 300)
    marker = markers.end_of_thinking
    kinds: Counter[str] = Counter()
    for rollout in rollouts:
        sampled = rollout.rationale_ids[: len(rollout.rationale_ids) - rollout.forced_end]
        inside = sampled if rollout.forced_end else sampled[: -len(marker)]
        assert rollout.rationale_ids[-len(marker) :] == marker
        assert count(rollout.rationale_ids, marker) == 1
        assert len(sampled) <= SAMPLING.rationale_budget
        assert rollout.forced_end in (0, len(marker))
        assert len(rollout.logprobs) == len(rollout.rationale_ids) + len(rollout.answer_ids) <= SAMPLING.max_new_tokens
        turn_ended = [index for index, token in enumerate(inside) if token in markers.end_of_turn]
        if rollout.forced_end:  # by the budget, or by the end of a turn, which is then the last sampled id
            assert turn_ended == [len(sampled) - 1] or not turn_ended
            assert turn_ended or len(sampled) == SAMPLING.rationale_budget
        else:
            assert not turn_ended
        kinds[f"rationale {'ended turn' if turn_ended else 'forced' if rollout.forced_end else 'closed'}"] += 1
        kinds[f"answer {check_answer(rollout, markers)}"] += 1
    assert len(kinds) == 5, kinds
    assert min(kinds.values()) >= 5, kinds


def check_answer(rollout: Rollout, markers: Markers) -> str:
    """An answer ends with the first end-of-turn id, which belongs to it, or when all is used, never in between."""
    *body, last = rollout.answer_ids
    assert not set(body) & set(markers.end_of_turn)
    if last in markers.end_of_turn:
        assert rollout.finish_reason == "stop"
    else:
        assert rollout.finish_reason == "length"
        assert len(rollout.logprobs) == SAMPLING.max_new_tokens
    return rollout.finish_reason


def test_without_answers_rollouts_stop_behind_the_rationale(
    engine: RolloutEngine, markers: Markers, prompts: list[tuple[int, ...]], policy: PreTrainedModel
) -> None:
    rollouts = sample(engine, prompts, 100, replace(SAMPLING, answers=False))
    for rollout in rollouts:
        assert rollout.answer_ids == ()
        assert rollout.rationale_ids[-len(markers.end_of_thinking) :] == markers.end_of_thinking
        assert rollout.finish_reason == ("length" if rollout.forced_end else "stop")
    assert {rollout.finish_reason for rollout in rollouts} == {"stop", "length"}
    assert worst_error(policy, rollouts[::10]) < TOLERANCE


@pytest.mark.parametrize("budget", [1, 2])
def test_the_smallest_budgets_are_kept(
    engine: RolloutEngine, markers: Markers, prompts: list[tuple[int, ...]], budget: int
) -> None:
    reserve = len(markers.end_of_thinking) + 1
    rollouts = sample(engine, prompts, 20, Sampling(max_new_tokens=budget + reserve, answer_reserve=reserve, seed=2))
    for rollout in rollouts:
        assert len(rollout.rationale_ids) - rollout.forced_end <= budget
        assert 1 <= len(rollout.answer_ids) <= budget + reserve - len(rollout.rationale_ids)


# Seeds


def test_one_seed_gives_one_result_and_other_seeds_others(
    engine: RolloutEngine, markers: Markers, prompts: list[tuple[int, ...]]
) -> None:
    engine.markers = markers
    twice = [prompts[0], prompts[0]]
    groups = engine.generate(twice, 20, SAMPLING)
    assert groups == engine.generate(twice, 20, SAMPLING)
    assert groups != engine.generate(twice, 20, replace(SAMPLING, seed=2))
    assert groups[0] != groups[1]  # the same prompt again is another sample
    assert len({rollout.rationale_ids for rollout in groups[0]}) > 10


def test_sampling_leaves_the_global_random_states_alone(engine: RolloutEngine, prompts: list[tuple[int, ...]]) -> None:
    before = torch.get_rng_state()
    engine.generate(prompts, 4, SAMPLING)
    assert torch.equal(before, torch.get_rng_state())


# Refusals


def test_prompts_that_cannot_be_sampled_are_refused(engine: RolloutEngine) -> None:
    with pytest.raises(UserError, match="prompt 1 has 16384 tokens"):
        engine.generate([[5], [5] * 16384], 2, SAMPLING)
    with pytest.raises(UserError, match="prompt 0 has no tokens"):
        engine.generate([[]], 2, SAMPLING)
    with pytest.raises(UserError, match="no room for a rationale"):
        engine.generate([[5]], 2, replace(SAMPLING, answer_reserve=14))
    assert engine.generate([], 2, SAMPLING) == []


def test_a_prompt_that_cannot_be_sampled_is_named_by_its_example(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, one_id: Markers
) -> None:
    engine = TransformersEngine(policy, one_id, batch_rollouts=8)
    codec = Codec(tokenizer, small_settings().model, chat=False)
    examples = [Example("short", "7?", ("7",), "a"), Example("page-3", "7" * 16384, ("7",), "b")]
    with pytest.raises(UserError, match=r"example page-3: prompt 1 has 16384 tokens; .* context of 16384"):
        sample_examples(engine, codec, examples, 2, SAMPLING)


def test_time_that_runs_out_is_an_error_and_the_engine_goes_on(
    vllm: VllmEngine, prompts: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = vllm.generate(prompts, 4, SAMPLING)
    monkeypatch.setattr(vllm, "timeout_seconds", 0.001)
    for answers in (True, False):
        with pytest.raises(TemporaryError, match=r"vLLM engine ran out of time .*rollout\.timeout_seconds = 0\.001"):
            vllm.generate(prompts, 100, replace(SAMPLING, answers=answers))
    monkeypatch.undo()
    assert vllm.generate(prompts, 4, SAMPLING) == before


def test_weights_that_come_too_slowly_are_an_error(
    vllm: VllmEngine, policy: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm, "timeout_seconds", 0)
    with pytest.raises(TemporaryError, match=r"rollout\.timeout_seconds"):
        vllm.load_weights(policy.state_dict().items())


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_weight_that_is_not_given_is_an_error(vllm: VllmEngine, policy: PreTrainedModel, name: str) -> None:
    weights = policy.state_dict()
    del weights[name]
    with pytest.raises(UserError, match=name):
        vllm.load_weights(weights.items())


@pytest.mark.usefixtures("vllm")
def test_threads_can_still_be_set_beside_vllm() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)


def test_multi_process_vllm_is_refused(tmp_path: Path, one_id: Markers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    with pytest.raises(UserError, match="VLLM_ENABLE_V1_MULTIPROCESSING"):
        VllmEngine(tmp_path, one_id, dtype="float32", timeout_seconds=60)
