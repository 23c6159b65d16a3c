"""The one exception that is meant for people, and what a log may say about all others."""

import traceback


class UserError(Exception):
    """A mistake that the reader of the message can mend: it names value, bound and remedy."""


def where_it_failed(error: Exception) -> str:
    """The kind and the place of an error, for a log: its words may hold what a user wrote."""
    return type(error).__name__ + ":\n" + "".join(traceback.format_tb(error.__traceback__)[-4:])
