"""Settings: what is read, and the sentence a user gets for what cannot be."""

from pathlib import Path

import pytest

from components.config import Arm, load_settings
from components.errors import UserError
from components.methods import Method
from components.objective.commitment import Course
from tests.conftest import PROJECT

PARAMS = PROJECT / "params.yaml"


def test_the_projects_own_settings_load():
    settings = load_settings(PARAMS)
    assert settings.arm_names == [
        "grpo", "garl-q0", "garl-q0.25", "garl-q0.5", "garl-q0.75", "garl-q1", "garl-debiased-q1", "paft-q0.75",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "method", "q"),
    [
        ("grpo", Method.GRPO, None),
        ("garl-q0", Method.GARL, 0.0),
        ("garl-q0.75", Method.GARL, 0.75),
        ("garl-plugin-q1", Method.GARL_PLUGIN, 1.0),
        ("garl-debiased-q.5", Method.GARL_DEBIASED, 0.5),
        ("paft-q1", Method.PAFT, 1.0),
        ("verifree", Method.GARL, 0.0),
        ("iwae", Method.GARL_PLUGIN, 1.0),
        ("em", Method.PAFT, 1.0),
        ("garl-score-q0.5", Method.GARL_SCORE, 0.5),
        ("garl-paft-q0.75", Method.GARL_PAFT, 0.75),
        ("garl-qadaptive", Method.GARL, None),
        ("garl-paft-q1to0", Method.GARL_PAFT, None),
        ("dr-grpo", Method.DR_GRPO, None),
        ("rloo", Method.RLOO, None),
        ("maxrl", Method.MAXRL, None),
        ("star", Method.STAR, None),
    ],
)
def test_an_arm_is_read_from_its_name(name: str, method: Method, q: float | None):
    assert (Arm.parse(name).method, Arm.parse(name).q) == (method, q)


NAMES = [
    "grpo", "dr-grpo", "rloo", "maxrl", "star", "garl-q0", "garl-q0.25", "garl-q0.00001", "garl-debiased-q1",
    "garl-score-q0.75", "garl-plugin-qadaptive", "paft-q0.75", "paft-q1to0", "garl-paft-q0.75", "garl-q1to0",
    "garl-q1to0-cosine", "garl-q1to0-at0.5", "garl-debiased-q0.9to0.1-at0.25", "garl-qadaptive", "garl-paft-qadaptive",
    "garl-qeach",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_an_arms_name_survives_reading(name: str):
    arm = Arm.parse(name)
    assert arm.name == name
    assert load_settings(PARAMS, [f"arms=[{name}]"]).arm_names == [name]
    assert hash(arm) == hash(Arm.parse(name))


@pytest.mark.parametrize(
    ("name", "course", "text", "recorded"),
    [
        ("garl-q0", Course.CONSTANT, "0", 0.0),
        ("garl-q1", Course.CONSTANT, "1", 1.0),
        ("garl-q1to0", Course.LINEAR, "1to0", "1to0"),
        ("garl-q1to0-cosine", Course.COSINE, "1to0-cosine", "1to0-cosine"),
        ("garl-q1to0-at0.5", Course.STEP, "1to0-at0.5", "1to0-at0.5"),
        ("paft-qadaptive", Course.ADAPTIVE, "adaptive", "adaptive"),
        ("garl-qeach", Course.EACH, "each", "each"),
    ],
)
def test_a_commitment_is_a_number_where_it_is_one(name: str, course: Course, text: str, recorded: float | str):
    arm = Arm.parse(name)
    assert arm.commitment is not None
    assert (arm.commitment.course, arm.q_text, arm.q_recorded) == (course, text, recorded)
    assert arm.q == (recorded if course is Course.CONSTANT else None)


@pytest.mark.parametrize("method", Method)
def test_an_arm_has_a_commitment_or_learns_from_rewards_of_sampled_answers(method: Method):
    if method.learns_from == "reward":
        arm = Arm.parse(method.value)
        assert arm.samples_answers
        assert (arm.commitment, arm.q, arm.q_text, arm.q_recorded) == (None, None, None, None)
    else:
        assert not Arm.parse(f"{method}-q0.5").samples_answers
        with pytest.raises(UserError, match=f"arm '{method}' needs a commitment q"):
            Arm.parse(method.value)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("arms=[garl-q1.5]", "q = 1.5 lies outside [0, 1]"),
        ("arms=[garl-q1.2.3]", "q = '1.2.3' is no commitment; write 0.75, 1to0, "),
        ("arms=[garl-qsometimes]", "arm 'garl-qsometimes': q = 'sometimes' is no commitment; write 0.75, 1to0, "),
        ("arms=[garl-q2to0]", "arm 'garl-q2to0': q = 2 lies outside [0, 1]"),
        ("arms=[garl-q1to0-at1]", "arm 'garl-q1to0-at1': q = 1to0-at1 moves at 1 of all steps"),
        ("arms=[paft-qeach]", "arm 'paft-qeach': each example has its own q in plain GARL alone; write garl-qeach"),
        ("arms=[garl-debiased-qeach]", "write garl-qeach"),
        ("arms=[garl]", "needs a commitment q between 0 and 1, as in garl-q0.75"),
        ("arms=[garl-paft]", "needs a commitment q between 0 and 1, as in garl-paft-q0.75"),
        ("arms=[grpo-q1]", "grpo has no commitment q; write plain 'grpo'"),
        ("arms=[dr-grpo-qadaptive]", "dr-grpo has no commitment q; write plain 'dr-grpo'"),
        ("arms=[garl-q1to0,garl-q1.0to0]", "lists the same arm twice"),
        ("arms=[ppo-q1]", "names no known method"),
        ("arms=[]", "arms = []"),
        ("arms=[iwae,garl-plugin-q1]", "lists the same arm twice"),
        ("rollout.group_size=1", "compares each rollout with the others of its group"),
        ("rollout.answer_reserve=20", "leaves no room for a rationale"),
        ("rollout.placement=servers", "rollout.placement = 'servers': write colocated, sleeping, server, the URL of "),
        ("rollout.placement=[server,http://a:8000]", "a vLLM server (http://HOST:PORT), or a list of URLs, each once."),
        ("rollout.placement=[http://a:8000,http://a:8000]", "or a list of URLs, each once."),
        ("rollout.placement=[]", "rollout.placement = []: write "),
        ("rollout.placement=8000", "rollout.placement = 8000: write "),
        ("rollout.transfer=adapters", "rollout.transfer = adapters is for servers: set rollout.placement to server"),
        ("rollout.placement=[http://a:8000]", "needs rollout.engine = vllm; transformers is always colocated."),
        ("train.steps=0", "train.steps = 0"),
        ("train.stepz=3", "there is no setting 'train.stepz'"),
        ("nonsense", "write name=value"),
        ("task.start=[", "is no valid YAML value"),
        ("task.start=2024-13-45", "is no valid YAML value"),
        ('task.path="a\\0b"', "task.path = 'a\\x00b': it holds a NUL or half a surrogate pair"),
        ('rollout.server_options=["\\ud800"]', "it holds a NUL or half a surrogate pair"),
        ("task.name=../finqa", "task.name = '../finqa': Input should be 'skills'"),
        ("arms=[../garl-q1]", "arm '../garl-q1' names no known method"),
        ("train.learning_rate=.inf", "Input should be a finite number"),
        ("seeds=[-1]", "seeds.0 = -1: Input should be greater than or equal to 0"),
        ("seeds=[9223372036854775808]", "Input should be less than"),
        ("task.name=arithmetic", "task.name = 'arithmetic'"),
    ],
)
def test_a_bad_setting_is_one_sentence_that_names_it(override: str, sentence: str):
    with pytest.raises(UserError) as caught:
        load_settings(PARAMS, [override])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("placement", "urls"),
    [
        ("server", []),
        ("https://a.example/vllm", ["https://a.example/vllm"]),
        ("[http://a:8000, http://b:8000]", ["http://a:8000", "http://b:8000"]),
    ],
)
def test_servers_are_ours_or_have_urls(placement: str, urls: list[str]):
    rollout = load_settings(PARAMS, ["rollout.engine=vllm", f"rollout.placement={placement}"]).rollout
    assert rollout.urls == urls


def test_colder_is_for_the_embedded_task_alone():
    with pytest.raises(UserError, match=r"task\.start = colder"):
        load_settings(PARAMS, ["task.start=colder", "task.name=finqa"])


def test_a_single_rollout_suits_estimators_that_compare_nothing():
    settings = load_settings(PARAMS, ["rollout.group_size=1", "arms=[iwae,em,star,garl-plugin-qadaptive,paft-q1to0]"])
    comparing = ["garl-q0.5", "garl-q1to0", "garl-qeach", "garl-score-q1", "garl-paft-q0.75", "garl-debiased-q1"]
    for arm in (*comparing, "grpo", "dr-grpo", "rloo", "maxrl"):
        with pytest.raises(UserError, match=rf"group_size = 1, but arm '{arm}' compares each rollout with the others"):
            settings.with_arm(arm)


def test_without_a_baseline_some_more_estimators_compare_nothing():
    arms = "arms=[garl-q0.5,garl-qadaptive,garl-score-q1,garl-paft-q0.75]"
    settings = load_settings(PARAMS, ["rollout.group_size=1", "train.baseline=false", arms])
    for arm in ("garl-qeach", "garl-debiased-q1", "rloo"):
        with pytest.raises(UserError, match=f"arm '{arm}' compares each rollout"):
            settings.with_arm(arm)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("arms: [", "no valid YAML"),
        ("just text", "holds no settings"),
        ("arms: [grpo]", "the setting 'seeds' is missing"),
        ("arms: &a [1]\nseeds: *a", "no valid YAML (line 2: aliases are not taken, write the value out)"),
        ("arms: &a [*a]", "no valid YAML (line 1: aliases are not taken"),
        ("arms: !!python/object/apply:os.system [true]", "no valid YAML (line 1: could not determine a constructor"),
        ("arms: 2024-13-45", "no valid YAML; correct it"),
        ("[" * 100_000, "no valid YAML; correct it"),
        ("#" * 2**21, "holds no settings"),
        ('extends: "a\\0b"', "which is no file's name"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, sentence: str):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_settings(path)
    assert sentence in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["a\0b", "a" * 300, "."])
def test_what_is_no_file_is_refused(tmp_path: Path, name: str):
    with pytest.raises(UserError, match=r"cannot be read: .*; name a settings file"):
        load_settings(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"no settings file .*params\.yaml"):
        load_settings(tmp_path / "params.yaml")


def test_the_digest_sees_every_setting_but_those_left_out():
    settings, other = load_settings(PARAMS), load_settings(PARAMS, ["train.steps=20"])
    assert settings.digest() != other.digest()
    assert settings.digest(without=["train"]) == other.digest(without=["train"])


PROFILES = sorted(path.relative_to(PARAMS.parent) for path in (PARAMS.parent / "infra/profiles").rglob("*.yaml"))


@pytest.mark.parametrize("profile", PROFILES, ids=str)
def test_every_profile_loads(profile: Path):
    load_settings(PARAMS.parent / profile)


@pytest.mark.parametrize(
    ("task", "budget", "sizes"),
    [
        ("finqa", 4096, (6145, 872, 1132)),
        ("hotpotqa", 3072, (9067, 342, 343)),
        ("musique", 2048, (9985, 579, 445)),
    ],
)
@pytest.mark.parametrize("start", ["cold", "warm"])
def test_the_papers_profiles_are_the_papers(task: str, budget: int, sizes: tuple[int, int, int], start: str):
    settings = load_settings(PARAMS.parent / f"infra/profiles/paper/{task}-{start}.yaml")
    assert (settings.task.name, settings.task.start) == (task, start)
    assert (settings.task.train, settings.task.validation, settings.task.test) == sizes
    assert (settings.rollout.max_new_tokens, settings.rollout.answer_reserve) == (budget, 128)
    assert (settings.model.name, settings.rollout.group_size) == ("Qwen/Qwen3-0.6B", 32)
    assert settings.evaluation.samples == 16
    warm = {"grpo", "garl-q0", "garl-q0.25", "garl-q0.75", "paft-q0.25", "paft-q0.75"}
    cold = {"grpo", "garl-q0", "garl-q0.25", "garl-q0.5", "garl-q0.75", "garl-q1"}
    assert set(settings.arm_names) == (warm if start == "warm" else cold)
    assert settings.train.adam_epsilon == 1e-8  # the embedded model's would hide small gradients


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_a_file_changes_some_settings_of_the_one_it_extends(tmp_path: Path):
    write(tmp_path / "params.yaml", PARAMS.read_text())
    write(tmp_path / "middle.yaml", "extends: params.yaml\ntrain:\n  steps: 7\n  optimizer: sgd\nseeds: [1, 2]\n")
    top = write(tmp_path / "more" / "top.yaml", "extends: ../middle.yaml\ntrain:\n  steps: 8\n")
    before, settings = load_settings(PARAMS), load_settings(top, ["train.weight_decay=0.5"])
    assert settings.train == before.train.model_copy(update={"steps": 8, "optimizer": "sgd", "weight_decay": 0.5})
    assert settings.seeds == [1, 2]
    assert settings.model_dump(exclude={"train", "seeds"}) == before.model_dump(exclude={"train", "seeds"})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("extends: nowhere.yaml", r"top\.yaml extends .*nowhere\.yaml, which does not exist"),
        ("extends: top.yaml", r"top\.yaml extends .*top\.yaml, which extends it in turn"),
        ("extends: other.yaml", r"other\.yaml extends .*top\.yaml, which extends it in turn"),
        ("extends: params.yaml\ntrain:\n  stepz: 3", "there is no setting 'train.stepz'"),
        ("extends: params.yaml\ntrain: 3", "train = 3"),
    ],
)
def test_what_cannot_be_extended_is_one_sentence(tmp_path: Path, text: str, sentence: str):
    write(tmp_path / "params.yaml", PARAMS.read_text())
    write(tmp_path / "other.yaml", "extends: top.yaml")
    with pytest.raises(UserError, match=sentence):
        load_settings(write(tmp_path / "top.yaml", text))


def test_adapters_are_sent_where_some_are_trained():
    served = ["rollout.engine=vllm", "rollout.placement=server", "rollout.transfer=adapters"]
    assert load_settings(PARAMS, [*served, "train.lora_rank=8", "train.zero_stage=3"]).rollout.transfer == "adapters"
    with pytest.raises(UserError, match=r"and none are trained: set train\.lora_rank, or rollout\.transfer to file"):
        load_settings(PARAMS, served)


def test_a_password_in_a_servers_address_is_refused_and_not_told():
    with pytest.raises(UserError, match=r"rollout\.placement holds a password") as error:
        load_settings(PARAMS, ["rollout.engine=vllm", "rollout.placement=http://me:s3cret@host:8000"])
    assert "s3cret" not in str(error.value)
