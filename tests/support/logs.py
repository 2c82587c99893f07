"""What the product has logged in a test, and nobody else."""

from __future__ import annotations

import logging

import pytest


def of_certplane(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """The records of our own loggers: gRPC's poller may still speak of the event loop of a test before."""
    return [record for record in caplog.records if record.name.partition(".")[0] == "certplane"]
