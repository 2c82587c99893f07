"""What all tests share: the fixtures of tests/support."""

import signal

# A run started by `nohup` or from a script's background ignores these, and so would each program that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

pytest_plugins = ["tests.support.parts", "tests.support.sandbox", "tests.support.stores"]
