"""Brokers without durable limits, for tests in which one host asks again and again; all others have the defaults."""

from __future__ import annotations

from dataclasses import fields
from typing import Final

from certplane.broker.settings import RateLimitSettings

UNLIMITED: Final = {field.name: 0 for field in fields(RateLimitSettings)}
"""`rate_limits` of broker.yml, none of them set."""
