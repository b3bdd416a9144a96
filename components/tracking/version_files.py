"""The files of a version: into MLflow's artifact store, back from there, and one file for all who hold the same."""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import requests
from mlflow.artifacts import download_artifacts
from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from components.addresses import shown
from components.data.digest import dvc_md5
from components.errors import UserError
from components.links import WEIGHTS, check_model, copy_model
from components.tracking.store import Store
from components.tracking.trouble import first_line
from components.tracking.version import WEIGHTS_TAG, Version

CHECKPOINT = "checkpoint"  # the type of the logged models that versions are made of


def log_model(store: Store, folder: Path, name: str, run_id: str, tags: Mapping[str, str]) -> LoggedModel:
    """Store the files of a folder as a logged model of a run; the tags become its parameters.

    Raises:
        UserError: the store refuses the files.
    """
    client, call = store.client, store.call
    model = call(
        client.create_logged_model,
        store.experiment_id,
        name=re.sub(r"""[/:.%"']""", "-", name),
        source_run_id=run_id,
        params=dict(tags),
        model_type=CHECKPOINT,
    )
    try:
        if is_local_uri(model.artifact_location):
            copy_model(folder, Path(local_file_uri_to_path(model.artifact_location)))
        else:
            call(client.log_model_artifacts, model.model_id, str(folder))
    except Exception as error:
        with suppress(MlflowException):
            client.finalize_logged_model(model.model_id, "FAILED")
        if isinstance(error, requests.RequestException):
            raise UserError(f"MLflow refuses the files of {folder}: {first_line(error)}") from error
        raise
    return call(client.finalize_logged_model, model.model_id, "READY")


def files_of(store: Store, version: Version, destination: Path) -> Path:
    """The store's own folder where it is on this machine, else `destination`.

    Raises:
        UserError: the files are gone, or are not those that were stored.
    """
    client, call = store.client, store.call
    source = call(client.get_model_version_download_uri, version.name, str(version.version))
    place = None if is_local_uri(source) else str(destination)
    try:
        folder = Path(call(download_artifacts, source, dst_path=place, tracking_uri=store.uri))
        if not any(folder.iterdir()):
            raise FileNotFoundError(source)
        if version.tags.get(WEIGHTS_TAG, found := dvc_md5(folder)) != found:
            raise OSError(f"their digest is {found} and not {version.tags[WEIGHTS_TAG]}")
    except (MlflowException, OSError) as error:
        raise UserError(
            f"the files of {version.reference} cannot be read from {shown(source)}: {first_line(error)}"
        ) from error
    check_model(folder)
    return folder


def share_with_cache(store: Store, version: Version, cache: Path) -> None:
    """Replace a version's weights by links to the same ones in DVC's cache, where both lie on one disk."""
    source = store.call(store.client.get_model_version_download_uri, version.name, str(version.version))
    if not is_local_uri(source):
        return
    for file in Path(local_file_uri_to_path(source)).rglob(f"*{WEIGHTS}"):
        # One that has a second name is shared already.
        if file.stat().st_nlink == 1:
            md5 = dvc_md5(file)
            _replace_by_link(file, cache / md5[:2] / md5[2:])


def _replace_by_link(file: Path, same: Path) -> None:
    link = file.with_name(f".{file.name}.link")
    with suppress(OSError):  # not there, on another disk, or no disk that links
        os.link(same, link)
        link.replace(file)
