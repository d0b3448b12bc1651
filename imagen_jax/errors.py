"""The one kind of error that a user can mend."""


class UsageError(ValueError):
    """Wrong use: one sentence with the value given, what was expected, and how to mend it.

    Entry points print the sentence without a traceback and exit with code 2.
    """
