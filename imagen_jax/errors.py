"""The two kinds of error that are told in one sentence."""


class UsageError(ValueError):
    """Wrong use: one sentence with the value given, what was expected, and how to mend it.

    Entry points print the sentence without a traceback and exit with code 2.
    """


class RunError(RuntimeError):
    """A right use that cannot go on, through the machine or the numbers: what happened, what is intact, what to do.

    Entry points print the sentence without a traceback and exit with code 1.
    """
