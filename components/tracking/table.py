"""Tables of texts with a run, which MLflow's UI shows, and lays side by side for several runs."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

from components.tracking.store import Store

MOST_ROWS, MOST_CHARACTERS = 200, 2000  # what a page still shows at once, of a table and of a text in it


def log_table(store: Store, run_id: str, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
    """Keep columns of equal length with a run as `name`.json, in the place of a table of that name.

    Only the first rows, and the beginning of long texts. MLflow's own log_table would append to what is there: who
    evaluates twice would have every answer twice.
    """
    client, call = store.client, store.call
    rows = [[*map(_cell, row)] for row in list(zip(*columns.values(), strict=True))[:MOST_ROWS]]
    table = {"columns": [*columns], "data": rows}
    call(client.log_text, run_id, json.dumps(table, ensure_ascii=False), f"{name}.json")
    # By this tag the UI knows which artifacts are tables.
    entry = {"path": f"{name}.json", "type": "table"}
    known = json.loads(call(client.get_run, run_id).data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
    if entry not in known:
        call(client.set_tag, run_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps([*known, entry]))


def _cell(value: Any) -> Any:
    return value[:MOST_CHARACTERS] + " ..." if isinstance(value, str) and len(value) > MOST_CHARACTERS else value
