"""The two exceptions that say what to do, mend something or try again, and the exit statuses of commands."""

FAILED = 1
USER_ERROR = 2  # also of the command line's own parser
TEMPORARY_ERROR = 75  # as in BSD's sysexits
INTERRUPTED = 130  # as of a process that the signal ends

STATUSES = {
    0: "done",
    FAILED: "a fault in Thaw, or a check that failed",
    USER_ERROR: "something that you can mend, told in a sentence",
    TEMPORARY_ERROR: "try again, the same command may succeed",
    INTERRUPTED: "interrupted",
}  # the exit statuses of every command


class UserError(Exception):
    """Bad input or a bad setting, told in one sentence that names it and its cure.

    The command line prints the sentence alone; any other exception is a defect and keeps its traceback.
    """


class Refused(UserError):
    """A service does not take the credentials, or wants some."""


class TemporaryError(Exception):
    """Something outside the program gave way, and the same call may succeed when it is made again; one sentence."""
