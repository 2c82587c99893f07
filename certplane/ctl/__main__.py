"""`python -m certplane.ctl` is certplanectl."""

from __future__ import annotations

import sys

from certplane.ctl.cli import main

if __name__ == "__main__":
    sys.exit(main())
