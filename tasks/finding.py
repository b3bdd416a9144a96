"""What a check of `thaw doctor` has found. Needs nothing but Python, for it is to work where packages are broken."""

from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass
from enum import StrEnum
from threading import Thread


class Status(StrEnum):
    """How grave a finding is, the lightest first."""

    OK = "ok"
    WARNING = "warning"  # it works, though not as it should
    FAULT = "fault"


@dataclass(frozen=True)
class Finding:
    """message: a sentence. cure: the command that mends it; empty where there is none, or the sentence says it all."""

    status: Status
    message: str
    cure: str = ""


def ok(message: str) -> Finding:
    """All is well, and what was seen."""
    return Finding(Status.OK, message)


def warning(message: str, cure: str) -> Finding:
    """It works, though not as it should, and the command that mends it."""
    return Finding(Status.WARNING, message, cure)


def fault(message: str, cure: str) -> Finding:
    """Something will not work, and the command that mends it."""
    return Finding(Status.FAULT, message, cure)


def worst(findings: list[Finding]) -> Finding:
    """All that was found of things of one kind, in one: the status of the worst, and what there is to say of it."""
    status = max((finding.status for finding in findings), key=list(Status).index)
    of = [finding for finding in findings if finding.status is status]
    cures = dict.fromkeys(finding.cure for finding in of if finding.cure)
    return Finding(status, " ".join(finding.message for finding in of), "; ".join(cures))


def found(check: Callable[[], Finding], seconds: float) -> Finding:
    """What a check finds; that it cannot be made, or not in time, is a fault too."""
    result = [fault(f"no result within {seconds:g} seconds.", "thaw doctor")]
    # With the settings that hold here, as Prefect's, which are bound to a context.
    worker = Thread(target=copy_context().run, args=(lambda: result.append(_tried(check)),), daemon=True)
    worker.start()
    worker.join(seconds)
    return result[-1]


def _tried(check: Callable[[], Finding]) -> Finding:
    from components.errors import UserError

    try:
        return check()
    except UserError as error:
        return fault(str(error), "")
    except ImportError as error:
        return fault(f"a package is missing or broken: {_line(error)}.", "make setup")
    except Exception as error:  # whatever is broken is to be told, and the other checks are to be made
        return fault(f"this cannot be looked at: {type(error).__name__}: {_line(error)}.", "make setup")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
