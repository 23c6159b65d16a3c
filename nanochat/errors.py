"""The one exception that is meant for people."""


class UserError(Exception):
    """A mistake that the reader of the message can mend: it names value, bound and remedy."""
