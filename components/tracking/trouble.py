"""What a store's errors mean: whether the same call may succeed later, and who refuses and why."""

import re

from mlflow.exceptions import MlflowException
from sqlalchemy.exc import OperationalError

from components.addresses import postgres_trouble, shown
from components.errors import Refused, UserError

FAILURE = re.compile(r"too many (5\d\d) error responses")  # what is left of them when MLflow's client gives up


def is_outage(error: Exception) -> bool:
    """Whether the store is away, overloaded or locked, and the same call may succeed a little later."""
    if not isinstance(error, MlflowException):
        # What MLflow itself reports as unavailable, in the calls that open a database once more.
        return isinstance(error, OperationalError)
    # A lost connection reaches us as a plain MlflowException without a code of its own.
    lost = error.error_code == "INTERNAL_ERROR" and str(error).startswith("API request to http")
    return lost or error.error_code in ("TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED")


def first_line(error: Exception) -> str:
    """The first line of a message, without the password that a URI in it may carry."""
    return shown(next(iter(str(error).strip().splitlines()), type(error).__name__))


def refusal(uri: str, error: Exception) -> UserError | None:
    """Of what asking again would only repeat: who refuses, and the cure. None where nothing better is known."""
    if uri.startswith("postgresql") and isinstance(error, OperationalError):
        return postgres_trouble(uri, error, "MLFLOW_TRACKING_URI")
    if not uri.startswith(("http://", "https://")) or not isinstance(error, MlflowException):
        return None
    if (status := error.get_http_status_code()) in (401, 403):
        return Refused(
            f"MLflow at {shown(uri)} refuses the credentials ({status}); set MLFLOW_TRACKING_USERNAME and"
            " MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to those of a user who may do this."
        )
    if "not in a valid JSON format" in str(error) or "failed with error code 404" in str(error):
        return UserError(
            f"what answers at {shown(uri)} is no MLflow server, or a sign-on page in front of it; correct"
            " MLFLOW_TRACKING_URI."
        )
    if failed := FAILURE.search(str(error)):
        return UserError(f"MLflow at {shown(uri)} fails ({failed[1]}); its log says why: mend it, and try again.")
    return None
