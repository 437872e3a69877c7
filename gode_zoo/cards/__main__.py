"""`python -m gode_zoo.cards`."""

import sys

from ._files import main

sys.exit(main())
