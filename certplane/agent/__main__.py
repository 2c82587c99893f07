"""`python -m certplane.agent`: the same as the command `certplane-agent`."""

import sys

from certplane.agent.cli import main

if __name__ == "__main__":
    sys.exit(main())
