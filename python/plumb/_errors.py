"""What can go wrong, by what to do about it."""

from __future__ import annotations


class Error(Exception):
    """Something cannot be read; the message says which file or field, what was expected and what was found."""


class Refused(Error):
    """The store does not hold what is asked for, as `plumb train` would say it, with the command that mends it."""


class Damaged(Error):
    """What is stored is not what was written."""


class NewerFormat(Error):
    """A newer plumb wrote it, and this one cannot know what it means."""
