"""The two exceptions that say what to do: mend something, or try again."""

USER_ERROR = 2  # the exit statuses of a command that has raised one of them
TEMPORARY_ERROR = 75  # as in BSD's sysexits


class UserError(Exception):
    """Bad input or a bad setting, told in one sentence that names it and its cure.

    The command line prints the sentence alone; any other exception is a defect and keeps its traceback.
    """


class Refused(UserError):
    """A service does not take the credentials, or wants some."""


class TemporaryError(Exception):
    """Something outside the program gave way, and the same call may succeed when it is made again; one sentence."""
