"""What all tests share: the fixtures of tests/support."""

pytest_plugins = ["tests.support.parts", "tests.support.sandbox", "tests.support.stores"]
