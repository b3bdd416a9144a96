"""What the environment keeps secret is in nothing that a sweep writes or says, whether it goes well or not."""

from dataclasses import replace
from pathlib import Path
from secrets import token_hex

import psycopg2
import pytest

from components.tracking.runs import connect
from tests.flows.scratch import Scratch, built_in
from tests.postgres import Postgres

SECRETS = {
    name: token_hex(12)
    for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
}
SECRETS |= {"HF_TOKEN": f"hf_{token_hex(12)}", "PREFECT_API_AUTH_STRING": f"admin:{token_hex(12)}"}
SECRETS["PREFECT_SERVER_API_AUTH_STRING"] = SECRETS["PREFECT_API_AUTH_STRING"]  # what the server asks for
PASSWORD = token_hex(12)  # in MLFLOW_TRACKING_URI
PLANTED = {PASSWORD, *(value.removeprefix("admin:") for value in SECRETS.values())}


def rows(uri: str) -> bytes:
    """All that a PostgreSQL database holds."""
    found = []
    with psycopg2.connect(uri) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        for (table,) in cursor.fetchall():
            cursor.execute(f'SELECT row_to_json(item)::text FROM "{table}" item')
            found += [text for (text,) in cursor.fetchall()]
    return "\n".join(found).encode()


def leaks(where: str, content: bytes) -> list[str]:
    return [f"{secret} in {where}" for secret in PLANTED if secret.encode() in content]


@pytest.mark.slow
def test_no_secret_is_written_or_said(
    copied: Scratch, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    uri = postgres.database("secrets").replace("@", f":{PASSWORD}@")
    (tmp_path / "home").mkdir()
    more = {**SECRETS, "MLFLOW_TRACKING_URI": uri, "HOME": str(tmp_path / "home")}
    project = replace(copied, prefect=tmp_path / "prefect", more=more)
    project.untrain("grpo")
    failing = replace(project, more={**more, "WORLD_SIZE": "many"})  # which the evaluation takes for a number
    failed = failing.run("thaw", "sweep", status=1)
    assert "ValueError: invalid literal for int() with base 10: 'many'" in failed
    assert "Traceback" in failed
    said = project.run("thaw", "sweep")
    assert (built_in(failed), built_in(said)) == ({"train@grpo-0"}, {"evaluate@grpo-0", "report"})

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert connect(project.folder).registry.find("thaw-skills@best").tags["estimator"] == "grpo"
    kept = rows(uri)
    assert b"rollout.group_size" in kept
    found = leaks("what was said", (failed + said).encode()) + leaks("MLflow's database", kept)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert tmp_path / "prefect" / "prefect.db" in files
    assert any("mlartifacts" in path.parts for path in files)
    for path in files:
        found += leaks(str(path), path.read_bytes())
    assert found == []
