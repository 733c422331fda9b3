"""Errors of libraries in a few words: one line is for the user, the rest of their text is context."""


def first_line(error: object) -> str:
    """The first line of an error, or of a message; its type where it has no text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
