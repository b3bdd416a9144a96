"""How a store is, found out without making, upgrading or writing anything."""

from enum import Enum, auto
from pathlib import Path

import mlflow
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from components.addresses import shown
from components.errors import UserError
from components.tracking.store import EXPERIMENT, database_file, tables, tracking_uri, wait_for_server
from components.tracking.trouble import first_line, refusal


class Condition(Enum):
    """Of a store: whether there is one, and whose tables it has, in a database."""

    MISSING = auto()
    OLDER = auto()
    CURRENT = auto()
    NEWER = auto()


def condition(root: Path, *, timeout: float = 3.0) -> Condition:
    """How the store of the project in `root` is; a server sees to its tables itself.

    Raises:
        UserError: it does not answer, refuses, or is no store of MLflow's.
    """
    uri = tracking_uri(root)
    try:
        if uri.startswith(("http://", "https://")):
            wait_for_server(uri, timeout)
            MlflowClient(tracking_uri=uri).get_experiment_by_name(EXPERIMENT)
            return Condition.CURRENT
        if (file := database_file(uri)) and not file.is_file():
            return Condition.MISSING
        return _of_tables(uri, timeout)
    except (MlflowException, SQLAlchemyError, ImportError) as error:
        raise refusal(uri, error) or UserError(f"MLflow at {shown(uri)} cannot be used: {first_line(error)}") from error


def _of_tables(uri: str, timeout: float) -> Condition:
    found, revision = tables(uri, timeout)
    if not found:
        return Condition.MISSING
    if revision is None:
        raise UserError(f"the database at {shown(uri)} is none of MLflow's; correct MLFLOW_TRACKING_URI.")
    scripts = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    if revision == scripts.get_current_head():
        return Condition.CURRENT
    try:
        scripts.get_revision(revision)
    except CommandError:
        return Condition.NEWER
    return Condition.OLDER
