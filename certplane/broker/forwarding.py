"""Copies of the audit log, put together for `app`."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from certplane.broker.background import running
from certplane.broker.configured import located
from certplane.broker.issuers.outgoing import configured_endpoint, trusted_roots
from certplane.broker.ports import Meter, SecretSource
from certplane.broker.settings import BrokerSettings
from certplane.broker.sinks.file import FileSink
from certplane.broker.sinks.forwarding import Forwarding
from certplane.broker.sinks.gate import SinkGate
from certplane.broker.sinks.ports import AuditSink
from certplane.broker.sinks.settings import AuditSinkSettings
from certplane.broker.store import Stores
from certplane.config.bundles import read_ca_bundle
from certplane.errors import ConfigurationError, ConfigurationProblem
from certplane.pki.bundle import encode_certificates
from certplane.runtime.clock import Clock


@asynccontextmanager
async def copying_audit(
    settings: BrokerSettings, secrets: SecretSource, stores: Stores, *, clock: Clock, meter: Meter
) -> AsyncIterator[Forwarding | None]:
    """What copies the audit log while it runs, in the block; None where the configuration has no sinks.

    Where one is required, decisions are held up for the length of the block while it is too far behind, whichever
    broker copies.

    Raises:
        ConfigurationError: a sink can't be made as it is configured.
    """
    if not settings.audit.sinks:
        yield None
        return
    async with AsyncExitStack() as stack:
        sinks = await stack.enter_async_context(open_sinks(settings, secrets, clock))
        if required := settings.audit.required_sinks:
            stores.audit.gate = gate = SinkGate(stores.stored_events, required, clock, meter)
            await stack.enter_async_context(running(gate.run(), "required audit sinks"))
        yield Forwarding(stores.stored_events, sinks, clock=clock, rng=random.SystemRandom(), meter=meter)
        stores.audit.gate = None


@asynccontextmanager
async def open_sinks(
    settings: BrokerSettings, secrets: SecretSource, clock: Clock
) -> AsyncIterator[Mapping[str, AuditSink]]:
    """All of `audit.sinks`, by name, for the length of the block. Connects to nobody.

    Raises:
        ConfigurationError: see `new_sink`.
    """
    async with AsyncExitStack() as stack:
        sinks = {}
        problems: list[ConfigurationProblem] = []
        for name, section in settings.audit.sinks.items():
            try:
                with located(settings):
                    sinks[name] = sink = new_sink(f"audit.sinks.{name}", section, secrets, clock)
            except ConfigurationError as error:
                problems += error.problems
            else:
                stack.push_async_callback(sink.close)
        if problems:
            raise ConfigurationError(problems)
        yield sinks


def new_sink(key: str, settings: AuditSinkSettings, secrets: SecretSource, clock: Clock) -> AuditSink:
    """The sink of a section; `key` is the section's. Connects to nobody.

    Raises:
        ConfigurationError: a file that it names can't be used, or an extra isn't installed.
    """
    if settings.file is not None:
        return FileSink(settings.file.path)
    # Each loads what it needs.
    if (syslog := settings.syslog) is not None:
        from certplane.broker.sinks.syslog import SyslogSink  # noqa: PLC0415 - see above

        context = trusted_roots(syslog.ca_bundle, f"{key}.syslog.ca_bundle")
        if syslog.cert is not None:
            try:
                context.load_cert_chain(syslog.cert, syslog.key)
            except OSError as error:  # ssl.SSLError is one
                problem = ConfigurationProblem("", None, f"{key}.syslog.cert", f"can't be used with its key: {error}")
                raise ConfigurationError([problem]) from error
        return SyslogSink(syslog, context, clock)
    assert settings.otlp is not None, "the section says so"
    from certplane.broker.sinks.otlp import OtlpSink  # noqa: PLC0415

    configured_endpoint(settings.otlp.endpoint, f"{key}.otlp.endpoint")
    roots = None
    if (bundle := settings.otlp.ca_bundle) is not None:
        at = ConfigurationProblem("", None, f"{key}.otlp.ca_bundle", "")
        roots = encode_certificates(read_ca_bundle(bundle, at=at, only_cas=False).certificates)
    return OtlpSink(settings.otlp, roots, secrets, key=f"{key}.otlp")
