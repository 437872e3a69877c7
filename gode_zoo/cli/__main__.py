"""`python -m gode_zoo.cli`."""

from ._shared import main

main()
