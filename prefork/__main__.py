"""`python -m prefork` is the command `prefork`."""

from __future__ import annotations

import sys

from prefork.cli import main

if __name__ == "__main__":
    sys.exit(main())
