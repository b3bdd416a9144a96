"""MLflow notes by absolute paths where files lie; when a project has moved, the notes of its own store follow."""

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from components.progress import say

# Where MLflow 3.17 has such paths (mlflow/store/*/dbmodels/models.py).
PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def follow(database: Path, experiment: str, files: Path) -> None:
    """Let a store in SQLite name its files where they are, if it still names a place where they were.

    database: of the store; its tables are there. experiment: whose files they are. files: the folder that has them now.
    """
    if not files.is_dir():
        return
    with closing(sqlite3.connect(database, timeout=30)) as store, store:
        found = store.execute("SELECT artifact_location FROM experiments WHERE name = ?", (experiment,)).fetchone()
        before = Path(unquote(urlsplit(found[0]).path)) if found and found[0] else files
        # One that somebody chose to keep elsewhere has another name.
        if before == files or before.parts[-2:] != files.parts[-2:]:
            return
        for old, new in ((str(before), str(files)), (before.as_uri(), files.as_uri())):
            for table, column in PLACES:
                store.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?)"
                    f" WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
                )
    say(f"the project has moved: MLflow's records name {files} now, and no longer {before}")
