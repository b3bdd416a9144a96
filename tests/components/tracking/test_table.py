"""Tables that MLflow's UI shows: as its own client reads them, of a bounded size, and each once."""

import json

import pandas as pd
import pytest

from components.tracking.runs import Tracker
from components.tracking.table import MOST_CHARACTERS, MOST_ROWS, log_table


@pytest.fixture(autouse=True)
def where_mlflow_looks(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client searches for tables in the store of the process, whatever its own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.store.uri)


def read(tracker: Tracker, run_id: str) -> pd.DataFrame:
    return tracker.store.client.load_table(tracker.store.experiment_id, "answers/test.json", run_ids=[run_id])


def test_a_table_is_there_as_mlflow_reads_it_and_takes_the_place_of_one_before(tracker: Tracker) -> None:
    with tracker.run("arm") as run:
        for answers in (["old", "older", "oldest"], ["=1+1", "é"]):
            log_table(tracker.store, run.id, "answers/test", {"answer": answers, "right": [True] * len(answers)})
        log_table(tracker.store, run.id, "answers/november", {"answer": []})
    found = read(tracker, run.id)
    assert found.to_dict("list") == {"answer": ["=1+1", "é"], "right": [True, True]}
    tags = tracker.store.client.get_run(run.id).data.tags
    assert json.loads(tags["mlflow.loggedArtifacts"]) == [
        {"path": f"answers/{name}.json", "type": "table"} for name in ("test", "november")
    ]


def test_a_table_stays_small(tracker: Tracker) -> None:
    with tracker.run("arm") as run:
        log_table(tracker.store, run.id, "answers/test", {"answer": ["x" * 10_000] * 5000})
    found = read(tracker, run.id)["answer"].tolist()
    assert found == ["x" * MOST_CHARACTERS + " ..."] * MOST_ROWS
