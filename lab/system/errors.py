"""Errors of libraries in one line for the user; the rest of their text is context."""


def first_line(error: object) -> str:
    """The first line of an error, or of a message; the type of an error without text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
