"""`python -m certplane.agent` is `certplane-agent`."""

from __future__ import annotations

import sys

from certplane.agent.cli import main

sys.exit(main())
