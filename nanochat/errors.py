"""The one exception that is meant for users, and what a log may say about all others."""

import traceback


class UserError(Exception):
    """An error that the user can fix: its one-line message names value, bound and remedy."""


def where_it_failed(error: Exception) -> str:
    """The type and the location of an error for a log, without its message."""
    # The message may quote what a user of the server wrote, which is not logged.
    return type(error).__name__ + ":\n" + "".join(traceback.format_tb(error.__traceback__)[-4:])
