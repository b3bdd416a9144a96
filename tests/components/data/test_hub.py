"""Data sets as the hub's repositories hold them, here in local folders: the same examples as the official files."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.config import HubSource, load_settings
from components.data import hub
from components.data.hub import fetch
from components.data.raw_files import TASKS
from components.data.reading import collect
from components.errors import UserError
from tests.conftest import PROJECT

PARAMS = PROJECT / "params.yaml"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def read(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)


def mirror(task: str, official: Path, folder: Path) -> HubSource:
    """A repository as those in params.yaml are: FinQA flat, HotPotQA with columns of lists, MuSiQue's own files."""
    if task == "finqa":
        for split, name in (("train", "train"), ("validation", "dev"), ("test", "dev")):
            rows = [
                {name: item[name] for name in ("id", "post_text", "pre_text", "table")}
                | {"question": item["qa"]["question"], "answers": item["qa"]["answer"]}
                for item in read(official / f"{name}.json")
            ]
            parquet(folder / "default" / split / "0000.parquet", rows)
        return HubSource(repository=str(folder), config=None, revision=None)
    if task == "hotpotqa":
        card = "---\nconfigs:\n"
        for config in ("distractor", "fullwiki"):
            card += f"- config_name: {config}\n  data_files:\n"
            for split, name in (("train", "train"), ("validation", "dev_distractor")):
                rows = [
                    {name: item[name] for name in ("question", "answer", "type", "level")}
                    | {
                        "id": item["_id"],
                        "supporting_facts": columns(item["supporting_facts"], "title", "sent_id"),
                        "context": columns(item["context"], "title", "sentences"),
                    }
                    for item in read(official / f"{name}.json")
                ]
                parquet(
                    folder / config / f"{split}-00000-of-00001.parquet", rows if config == "distractor" else rows[:1]
                )
                card += f"  - split: {split}\n    path: {config}/{split}-*\n"
        (folder / "README.md").write_text(card + "---\n")
        return HubSource(repository=str(folder), config="distractor", revision=None)
    folder.mkdir()
    for name in ("train", "dev"):
        (folder / f"musique_ans_v1.0_{name}.jsonl").write_bytes((official / f"{name}.jsonl").read_bytes())
    return HubSource(repository=str(folder), config=None, revision=None)


def columns(pairs: list[Any], first: str, second: str) -> dict[str, list[Any]]:
    return {first: [pair[0] for pair in pairs], second: [pair[1] for pair in pairs]}


@pytest.mark.parametrize(
    ("task", "files"),
    [
        ("finqa", {"train.json": 100, "dev.json": 120, "test.json": 120}),
        ("hotpotqa", {"train.json": 300, "dev_distractor.json": 150}),
        ("musique", {"train.jsonl": 100, "dev.jsonl": 80}),
    ],
)
def test_what_is_fetched_loads_as_the_official_files_do(
    real_samples: Path, tmp_path: Path, task: str, files: dict[str, int]
) -> None:
    official = real_samples / task
    source = mirror(task, official, tmp_path / "repository")
    assert fetch(task, source, tmp_path / "raw") == files
    assert {path.name for path in (tmp_path / "raw").iterdir()} == set(files)
    for name in files:
        published = "dev.json" if name == "test.json" else name
        fetched = collect(TASKS[task].read, tmp_path / "raw" / name)
        assert fetched == collect(TASKS[task].read, official / published)
    first = (tmp_path / "raw" / next(iter(files))).read_bytes()
    fetch(task, source, tmp_path / "raw")
    assert (tmp_path / "raw" / next(iter(files))).read_bytes() == first


def test_missing_columns_splits_and_repositories_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    rows = [{"id": "1", "question": "q", "answer": "a"}]
    for split in ("train", "validation"):
        parquet(tmp_path / "columns" / f"{split}.parquet", rows)
    parquet(tmp_path / "splits" / "train.parquet", rows)
    for repository, sentence in (
        ("columns", r"has no column context but id, question, answer; name a mirror of hotpotqa"),
        ("splits", r"has no splits train and validation; correct hub\.hotpotqa\.repository"),
        ("nothing", r"hotpotqa cannot be fetched from .*nothing: "),
    ):
        with pytest.raises(UserError, match=sentence):
            fetch("hotpotqa", HubSource(repository=str(tmp_path / repository), config=None, revision=None), tmp_path)
    with pytest.raises(UserError, match="cannot be fetched from nobody/nothing at main: "):
        fetch("hotpotqa", HubSource(repository="nobody/nothing", config=None, revision="main"), tmp_path)


def test_a_repository_with_a_script_is_refused_and_the_script_not_run(tmp_path: Path) -> None:
    script = tmp_path / "finqa" / "finqa.py"
    script.parent.mkdir()
    script.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UserError, match="finqa cannot be fetched"):
        fetch("finqa", HubSource(repository=str(script.parent), config=None, revision=None), tmp_path / "raw")
    assert not (tmp_path / "ran").exists()


def test_a_small_file_that_unpacks_to_more_than_a_disk_holds_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = 5_000_000
    text = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int8()), records), ["x" * 10_000])
    for split in ("train", "validation"):
        path = tmp_path / "bomb" / f"{split}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(
            pa.table(dict.fromkeys(("id", "pre_text", "table", "post_text"), text)), path, store_schema=False
        )
    assert path.stat().st_size < 100_000  # of 200 GB
    source = HubSource(repository=str(path.parent), config=None, revision=None)
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    for name, limit in (("MOST_RECORDS", 2000), ("MOST_CHARACTERS", 10**8)):
        with monkeypatch.context() as patched:
            patched.setattr(hub, name, limit)
            with pytest.raises(UserError, match=rf"train\.json would have more than .*{limit:,} "):
                fetch("finqa", source, tmp_path / "raw")
        assert list((tmp_path / "raw").iterdir()) == []
    pa.set_memory_pool(before)
    assert pool.max_memory() < 100e6


@pytest.mark.parametrize("path", ["../elsewhere/*.parquet", "{}/elsewhere/*.parquet"])
def test_a_card_cannot_name_files_outside_of_its_repository(tmp_path: Path, path: str) -> None:
    for split in ("train", "validation"):
        parquet(tmp_path / "elsewhere" / f"{split}.parquet", [{"id": "secret"}])
    (tmp_path / "repository").mkdir()
    splits = "".join(f"  - split: {split}\n    path: {path.format(tmp_path)}\n" for split in ("train", "validation"))
    card = f"---\nconfigs:\n- config_name: default\n  data_files:\n{splits}---\n"
    (tmp_path / "repository" / "README.md").write_text(card)
    with pytest.raises(UserError, match=r"repository takes its data from elsewhere, .*/elsewhere/train.parquet"):
        fetch("finqa", HubSource(repository=str(tmp_path / "repository"), config=None, revision=None), tmp_path)


def test_records_of_another_form_are_one_sentence(tmp_path: Path) -> None:
    row = {"id": "1", "question": "q", "answer": "a", "context": "text", "supporting_facts": "text"}
    for split in ("train", "validation"):
        parquet(tmp_path / "other" / f"{split}.parquet", [row])
    source = HubSource(repository=str(tmp_path / "other"), config=None, revision=None)
    with pytest.raises(UserError, match=r"record 1 of .*other has another form than those of hotpotqa \(.*\); name"):
        fetch("hotpotqa", source, tmp_path)


def test_every_published_task_has_a_repository() -> None:
    hub = load_settings(PARAMS).hub
    assert hub.keys() == {"finqa", "hotpotqa", "musique"}
    assert all(source.revision for source in hub.values())
