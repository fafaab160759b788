"""The error every user-facing failure raises."""

from __future__ import annotations


class RestillError(Exception):
    """A failure the user can mend: the message names the offending value and what to do.

    The command line prints it without a traceback and exits with status 1.
    """
