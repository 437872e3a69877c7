"""The command line: one thin command a verb. What a command does lies in the module of its name (`list`: listing.py).

The verbs register with the app when they are imported, in the order in which the help shows them.
"""

from . import _use, _learn, _hub, _measure  # noqa: F401, I001
from ._shared import app, main

__all__ = ["app", "main"]
