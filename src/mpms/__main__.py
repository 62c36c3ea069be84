"""``python -m mpms`` is the command ``mpms``."""

import sys

from mpms.faces.cli import main

if __name__ == "__main__":
    sys.exit(main())
