"""`python -m limpet` is the `limpet` command."""

import sys

from .cli import main

sys.exit(main())
