"""Checks of the services that a project uses, for `thaw doctor`; nothing is made, written or upgraded."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from components.errors import Refused, TemporaryError, UserError
from tasks.finding import Finding, fault, ok, warning, worst

ANSWER_SECONDS = 5.0


def mlflow(root: Path) -> Finding:
    """Whether the store answers, takes the credentials, and has the tables of this MLflow."""
    from components.addresses import shown
    from components.tracking.condition import Condition, condition
    from components.tracking.store import tracking_uri

    uri = tracking_uri(root)
    where, own = f"MLflow at {shown(uri)}", uri.startswith("sqlite")
    upgrade = f"mlflow db upgrade {shlex.quote(uri) if own else '$MLFLOW_TRACKING_URI'}"
    try:
        state = condition(root, timeout=ANSWER_SECONDS)
    except Refused as error:
        served = "MLFLOW_TRACKING_USERNAME=... MLFLOW_TRACKING_PASSWORD=..."
        database = "MLFLOW_TRACKING_URI=postgresql://USER:PASSWORD@HOST/DATABASE"
        return fault(str(error), f"export {database if uri.startswith('postgresql') else served}")
    except UserError as error:
        return fault(str(error), "unset MLFLOW_TRACKING_URI" if not own else "mlflow ui")
    match state:
        case Condition.MISSING:
            return ok(f"{where}: nothing yet, the first training run makes it.")
        case Condition.OLDER if own:
            return warning(f"{where} has the tables of an older MLflow; the next run upgrades them.", upgrade)
        case Condition.OLDER:
            return fault(f"{where} has the tables of an older MLflow.", upgrade)
        case Condition.NEWER:
            return fault(f"{where} has the tables of a newer MLflow than this one.", "pip install --upgrade mlflow")
    return ok(f"{where} answers.")


def prefect() -> Finding:
    """Whether the configured server answers and lets us in, or the database of one that a sweep would start."""
    from components.addresses import shown
    from tasks.server import check_database, configured_server

    try:
        if (url := configured_server()) is not None:
            return ok(f"the Prefect server at {shown(url)} answers.")
    except Refused as error:
        return fault(str(error), "export PREFECT_API_AUTH_STRING=USER:PASSWORD")
    except UserError as error:
        return fault(str(error), "unset PREFECT_API_URL; prefect config unset --yes PREFECT_API_URL")
    try:
        check_database()
    except UserError as error:
        return fault(str(error), "unset PREFECT_SERVER_DATABASE_CONNECTION_URL")
    return ok("no Prefect server is configured; a sweep starts one for itself.")


def lost_runs() -> Finding:
    """Whether Prefect shows runs as going on whose processes are gone."""
    from tasks.lost_runs import lost_runs as find

    if lost := find():
        told = f"Prefect shows killed flow runs as running until a sweep reaches their server: {len(lost)}."
        return warning(told, "thaw sweep")
    return ok("no flow run of this machine has lost its process.")


def vllm(urls: Sequence[str]) -> Finding:
    """Whether the servers of vLLM answer that the settings name."""
    from components.rollout.key import KEY
    from components.rollout.server_client import ServerClient

    findings = [ok("the settings name no vLLM server.")] if not urls else []
    for url in urls:
        try:
            ServerClient(url, timeout_seconds=ANSWER_SECONDS, key=os.environ.get(KEY)).processes()
        except (UserError, TemporaryError) as error:
            findings.append(fault(str(error), "VLLM_SERVER_DEV_MODE=1 vllm serve build/base --tokens-only ..."))
        else:
            findings.append(ok(f"the vLLM server at {url} answers."))
    return worst(findings)
