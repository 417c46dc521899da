"""`python -m opendino`, e.g. under torchrun."""

import sys

from opendino.cli import main

if __name__ == "__main__":
    sys.exit(main())
