"""`python -m certplane.sandbox`: see `certplane.sandbox.cli`."""

from __future__ import annotations

import sys

from certplane.sandbox.cli import main

if __name__ == "__main__":
    sys.exit(main())
