"""Kills at chosen moments, within the process of a test."""

import os
from pathlib import Path


class Killed(BaseException):
    """What a kill is to a test."""


def killing(patch, at, *others):
    """Makes the process die when it is about to do a thing to the disk, or one of the others, for the ``at``-th time.

    Args:
        patch: a MonkeyPatch.
        at: how often it may before.
        others: (object, name) of other functions that count.
    """
    count = 0

    def dying(do):
        def do_or_die(*arguments, **settings):
            nonlocal count
            count += 1
            if count > at:  # and nothing more is done after it
                raise Killed
            return do(*arguments, **settings)

        return do_or_die

    on_disk = [(os, name) for name in ("fsync", "replace", "unlink")] + [(Path, "write_bytes"), (Path, "unlink")]
    for owner, name in (*on_disk, *others):
        patch.setattr(owner, name, dying(getattr(owner, name)))
