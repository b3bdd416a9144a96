"""A model's files to a repository of the Hugging Face hub, in one commit: safetensors, JSON and text alone."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from components.addresses import shown
from components.errors import Refused, TemporaryError, UserError
from components.links import WEIGHTS, check_model

CARD = "README.md"
HTTP_ERROR = HfHubHTTPError.__bases__[0]  # that of the HTTP library below huggingface_hub; lost connections are some
TOKEN = "HF_TOKEN"
# What a model's folder consists of. All else, pickles and programs above all, nobody would want from us.
SUFFIXES = frozenset({WEIGHTS, ".json", ".txt", ".md", ".jinja", ".model"})
NAMES = frozenset({"LICENSE", "NOTICE"})
XET_STATUS = re.compile(r"HTTP status (?:client|server) error \((\d{3})")
# Weights of another model that a repository may hold: Transformers would still find them.
OTHER_WEIGHTS = (WEIGHTS, f"{WEIGHTS}.index.json", ".bin", ".bin.index.json")


def model_files(folder: Path) -> list[str]:
    """The files of a model, from its folder on, all of which may be published.

    Raises:
        UserError: the folder holds something else too, such as a pickle or a link out of it, or no model.
    """
    check_model(folder)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    for file in files:
        plain = file.suffix in SUFFIXES or file.name in NAMES
        if not plain or any(part.startswith(".") for part in file.parts):
            raise UserError(
                f"{folder / file} is no safetensors, JSON or text file of a model and is not published; take it out of"
                " the folder."
            )
    weights = [file for file in files if file.suffix == WEIGHTS]
    if not weights or Path("config.json") not in files:
        raise UserError(f"{folder} holds no model to publish, which is a config.json and weights as safetensors.")
    for file in weights:
        try:
            with safe_open(folder / file, "numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(f"{folder / file} is no safetensors file ({error}); save the model again.") from error
    return [file.as_posix() for file in files]


def check_repository(name: str) -> None:
    """Refuse what cannot be a repository of the hub.

    Raises:
        UserError: the name is none.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"{name[:100]!r} names no repository of the hub; write OWNER/NAME.") from error
    if "/" not in name:
        raise UserError(f"{name[:100]!r} names no repository of the hub; write OWNER/NAME, as in me/{name[:100]}.")


def push(
    folder: Path,
    files: Sequence[str],
    card: ModelCard,
    repository: str,
    *,
    public: bool,
    revision: str | None,
    message: str,
) -> str:
    """Make the repository hold these files and the card, and no weights but these; returns the address of the commit.

    The repository is made if it does not exist, private unless `public`; so is the branch `revision`. Files that it has
    already are not sent again. The token is that of HF_TOKEN.

    Raises:
        UserError: there is no token, the hub refuses it or the card, or the repository is public and not to be, or
            leaves a file out.
        TemporaryError: the hub cannot be reached, fails, or gave way in the middle; nothing is seen of half a push.
    """
    token = os.environ.get(TOKEN)
    if not token:
        raise UserError(
            f"there is no token for the Hugging Face hub; set {TOKEN} to one that may write, from its page"
            " Settings, Access Tokens."
        )
    api = HfApi(token=token)
    with _told(repository, api.endpoint, token):
        card.validate()
        api.create_repo(repository, private=not public, exist_ok=True)
        if revision:
            api.create_branch(repository, branch=revision, exist_ok=True)
        found = api.model_info(repository, revision=revision)
        if not (found.private or public):
            raise UserError(f"{repository} exists and is public; say so with --public, or name another repository.")
        there = [file.rfilename for file in found.siblings or ()]
        old = [name for name in there if name.endswith(OTHER_WEIGHTS) and name not in files]
        operations = [
            *(CommitOperationAdd(name, folder / name) for name in files if name != CARD),
            CommitOperationAdd(CARD, str(card).encode()),
            *(CommitOperationDelete(name) for name in old),
        ]
        address = api.create_commit(repository, operations, commit_message=message, revision=revision).commit_url
        arrived = {file.rfilename for file in api.model_info(repository, revision=revision).siblings or ()}
    if left_out := sorted({*files, CARD} - arrived):
        raise UserError(
            f"{repository} did not take {', '.join(left_out)}, as a .gitignore in it may say; correct that one, and"
            " push again."
        )
    return str(address)


@contextmanager
def _told(repository: str, endpoint: str, token: str) -> Iterator[None]:
    """One sentence in place of an error of dozens of kinds: of the connection, the hub, the repository, its storage."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (trouble := _trouble(repository, shown(endpoint), error, token)) is None:
            raise
        raise trouble from error


def _trouble(repository: str, endpoint: str, error: Exception, token: str) -> Exception | None:
    """None for a defect."""
    said = shown(" ".join(str(error).split())).replace(token, "...")[:300]
    chain = list(_chain(error))
    answer = next((each.response for each in chain if isinstance(each, HfHubHTTPError)), None)
    # The part of the hub's library that uploads large files tells a status in its text alone.
    in_text = XET_STATUS.search(said)
    status = answer.status_code if answer is not None else int(in_text[1]) if in_text else 0
    if status == 401:
        return Refused(f"the Hugging Face hub at {endpoint} does not take the token in {TOKEN}; set it to a valid one.")
    if status == 403:
        return Refused(f"the token in {TOKEN} may not write to {repository}; give it that right, or name another.")
    if status == 429 or status >= 500:
        return TemporaryError(f"the Hugging Face hub at {endpoint} fails ({status}); push again. ({said})")
    if status == 404 and in_text:
        return UserError(f"the hub at {endpoint} has no Xet storage; set HF_HUB_DISABLE_XET=1 to push there.")
    if status == 404:
        return UserError(f"the hub at {endpoint} knows no owner or revision as in {repository}; correct it. ({said})")
    if isinstance(error, OfflineModeIsEnabled):
        return UserError("HF_HUB_OFFLINE keeps Thaw from the Hugging Face hub; unset it to push.")
    if status or isinstance(error, ValueError):
        return UserError(f"the Hugging Face hub at {endpoint} refuses {repository}: {said}")
    # RuntimeError: of a large file whose upload broke off.
    if any(isinstance(each, (OSError, HTTP_ERROR, RuntimeError)) for each in chain):
        return TemporaryError(f"the Hugging Face hub at {endpoint} cannot be reached; push again. ({said})")
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
