"""The error of data that cannot be used; its message is a sentence for the user."""


class DataError(ValueError):
    """Data that is missing or cannot be used; says what was looked for, where, what was found, what to do."""
