"""Whole brokers in a test's process, each with a configuration of its own, on one PostgreSQL."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path

from certplane.broker.app import Broker, open_broker
from certplane.broker.prepared import prepare
from certplane.broker.settings import load_settings
from tests.support.broker_files import BrokerFiles
from tests.support.ca import PrivateCa

_CA = PrivateCa("internal")


def configured(folder: Path, url: str) -> BrokerFiles:
    """A broker on the database at `url`, with a spill file of its own, and all else as its neighbours have it."""
    folder.mkdir()
    files = BrokerFiles(folder, _CA)
    files.settings["issuer"]["acme"]["account_key"] = str(folder.parent / "account.key")
    files.settings["store"] = {"driver": "postgresql", "url": url}
    files.settings["audit"] = {"spill_path": str(folder / "spill.jsonl")}
    files.write()
    return files


def starting(files: BrokerFiles) -> AbstractAsyncContextManager[Broker]:
    """A broker that serves for the length of the block."""
    return open_broker(prepare(load_settings(files.config)))
