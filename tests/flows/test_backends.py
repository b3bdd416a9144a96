"""A flow with everything on PostgreSQL: Prefect's server and MLflow's store."""

import os
import subprocess
import sys
from pathlib import Path

import psycopg2
import pytest

from components.tracking.runs import connect
from tests.conftest import PROJECT
from tests.flows.scratch import OUTSIDE
from tests.postgres import Postgres

SCRIPT = """
import json
from pathlib import Path

from components.tracking.runs import connect
from flows.registry import promote
from flows.serve import with_server

here = Path.cwd()
(here / "out").mkdir()
(here / "out/config.json").write_text("{}")
sample = {"id": "1", "answers": ["a"], "correct": [True], "exact": [True], "vote": "a", "vote_correct": True}
(here / "out/samples.jsonl").write_text(json.dumps(sample) + chr(10))
tracker = connect(here)
with tracker.run("arm") as run:
    version = run.register(here / "out", "thaw-skills", step=1, tags={}, metrics={})
tracker.registry.add_evaluation(version, "test", here / "out", {"maj_at_1": 1.0}, "digest")
with with_server():
    print(promote("thaw-skills/1").told)
"""


@pytest.mark.slow
def test_a_flow_runs_with_prefect_and_mlflow_on_postgresql(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "params.yaml").write_bytes((PROJECT / "params.yaml").read_bytes())
    store = postgres.database("flow-mlflow")
    environment = {name: value for name, value in os.environ.items() if not OUTSIDE.match(name)} | {
        "PYTHONPATH": str(PROJECT),
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": postgres.database("flow-prefect", "postgresql+asyncpg"),
        "MLFLOW_TRACKING_URI": store,
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert "thaw-skills/1 is the champion of thaw-skills" in done.stdout
    with psycopg2.connect(store.replace("flow-mlflow", "flow-prefect")) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT flow.name, state_type::text FROM flow_run JOIN flow ON flow.id = flow_run.flow_id")
        assert cursor.fetchall() == [("promote", "COMPLETED")]
        cursor.execute("SELECT key FROM artifact")
        assert ("promotion",) in cursor.fetchall()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert connect(tmp_path).registry.find("thaw-skills@champion").version == 1
