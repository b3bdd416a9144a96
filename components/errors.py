"""The one exception a user is meant to read."""


class UserError(Exception):
    """Bad input or a bad setting, told in one sentence that names it and its cure.

    The command line prints the sentence alone; any other exception is a defect and keeps its traceback.
    """
