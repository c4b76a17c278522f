"""Errors that Longhaul raises on purpose.

A user's mistake is a `UserError`: one line that names the thing and the fix. The command line prints that line, without a
traceback, and exits with 2; a job driver fails at once and is never retried. Anything else is a defect or a machine's
failure and keeps its traceback.
"""


class LonghaulError(Exception):
    """Base of every error raised on purpose.

    Attributes:
        exit_code: what a command that ends by this error returns to the shell.
    """

    exit_code = 1


class UserError(LonghaulError):
    """Something that the user gave cannot work; the message says what it is and how to put it right.

    Args:
        problem: what is wrong, naming the file, field or argument.
        fix: what to do about it, as an imperative ("give ...", "run ...").
    """

    exit_code = 2

    def __init__(self, problem: str, fix: str = "") -> None:
        super().__init__(problem, fix)
        self.problem = problem
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.problem}. {self.fix}" if self.fix else self.problem


class IntegrityError(LonghaulError):
    """Stored bytes are not what their manifest says: a file is missing, cut short, or its SHA-256 differs."""

    exit_code = 2


def first_line(error: Exception) -> str:
    """An error's first line without its full stop, for the brackets of a message of ours; its type where it says nothing."""
    return str(error).split("\n", 1)[0].rstrip(".") or type(error).__name__
