"""`python -m certplane.broker`: the same as the command `certplane-broker`."""

import sys

from certplane.broker.cli import main

if __name__ == "__main__":
    sys.exit(main())
