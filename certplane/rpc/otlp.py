"""OpenTelemetry behind `certplane.runtime.tracing`: spans are sent to a collector by OTLP over gRPC.

Comes with the extra `certplane[telemetry]`. Sending is a thread's, in batches; a collector that is away costs spans and
a line of the log an hour, never a call: what can't be sent is dropped once 2,048 spans wait.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import grpc
from typing_extensions import override

from certplane import __version__
from certplane.errors import OperationError
from certplane.runtime import tracing
from certplane.runtime.clock import SystemClock
from certplane.runtime.rarely import Rarely
from certplane.runtime.text import printable
from certplane.runtime.tracing import Collector, Span, SpanKind, Tracer, Value

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span as OtelSpan

_SEND: Final = timedelta(seconds=5)
"""For one batch, and for the last one at the end."""
_LOUD: Final = {"opentelemetry.exporter": logging.ERROR, "opentelemetry.sdk": logging.WARNING}
"""Whose loggers, and those below, would repeat for each batch what is said once an hour; from this level on."""
_OFTEN: Final = timedelta(hours=1)
_SHOWN: Final = 300

_logger = logging.getLogger("certplane.tracing")

_TRACEPARENT: Final = "traceparent"


@contextlib.contextmanager
def traced(collector: Collector | None, program: str) -> Iterator[None]:
    """Keep this process's spans for the length of the block, if there is a collector; `program` is the service's name.

    Raises:
        OperationError: the extra isn't installed, or the CA bundle can't be read.
    """
    if collector is None:
        yield
        return
    with _seldom_heard():
        provider = _provider(collector, program)
        tracing.begin(OtelTracer(provider))
        try:
            yield
        finally:
            tracing.begin(None)
            provider.shutdown()


@dataclass(frozen=True, slots=True)
class Unusable:
    """Why spans can't be sent; `key` is that of the section `tracing`."""

    key: str
    message: str
    remedy: str


def why_unusable(collector: Collector | None) -> Unusable | None:
    """What keeps a program from sending spans to `collector`, as far as this machine tells; None if nothing does."""
    if collector is None:
        return None
    try:
        import opentelemetry.exporter.otlp.proto.grpc.trace_exporter  # noqa: PLC0415 - most installations lack these,
        import opentelemetry.sdk.trace  # noqa: F401, PLC0415 - and trace nothing
    except ImportError as error:
        message = f"needs OpenTelemetry, which isn't installed ({error.name or error})"
        return Unusable("endpoint", message, "install Certplane's extra `telemetry`, or drop the section `tracing`")
    try:
        if collector.ca_bundle is not None:
            collector.ca_bundle.read_bytes()
    except OSError as error:
        return Unusable("ca_bundle", f"can't be read: {error.strerror or error}", f"look at {collector.ca_bundle}")
    return None


def _provider(collector: Collector, program: str) -> TracerProvider:
    if (unusable := why_unusable(collector)) is not None:
        raise OperationError(f"tracing.{unusable.key} {unusable.message}", remedy=unusable.remedy)
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - see above
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio  # noqa: PLC0415

    roots = None if collector.ca_bundle is None else collector.ca_bundle.read_bytes()
    exporter = OTLPSpanExporter(
        endpoint=collector.target,
        insecure=not collector.secure,
        credentials=grpc.ssl_channel_credentials(roots) if collector.secure else None,
        timeout=_SEND.total_seconds(),
    )
    provider = TracerProvider(
        sampler=ParentBasedTraceIdRatio(collector.share),
        resource=Resource.create({"service.name": program, "service.version": __version__}),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


class _Seldom(logging.Handler):
    """Says in this program's own log what a library logs, of each kind once an hour.

    A handler and no filter: a logger's filters aren't asked about what the loggers below it say.
    """

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._rarely = Rarely(SystemClock(), at_once=1, every=_OFTEN)

    @override
    def emit(self, record: logging.LogRecord) -> None:
        if self._rarely.take(str(record.msg)) is not None:
            _logger.warning("spans can't be sent: %s", printable(record.getMessage(), _SHOWN))


@contextlib.contextmanager
def _seldom_heard() -> Iterator[None]:
    """Have what OpenTelemetry logs said seldom, for the length of the block."""
    handlers = {logging.getLogger(name): _Seldom(level) for name, level in _LOUD.items()}
    for logger, handler in handlers.items():
        logger.addHandler(handler)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, handler in handlers.items():
            logger.removeHandler(handler)
            logger.propagate = True


class OtelTracer(Tracer):
    """Over a provider of OpenTelemetry's."""

    def __init__(self, provider: TracerProvider) -> None:
        """Spans go to `provider`."""
        from opentelemetry.trace import SpanKind as Kind  # noqa: PLC0415 - see `_provider`
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        self._tracer = provider.get_tracer("certplane", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._kinds = {kind: Kind[kind.name] for kind in SpanKind}

    @override
    @contextlib.contextmanager
    def open(self, name: str, kind: SpanKind, parent: str, attributes: Mapping[str, Value]) -> Iterator[Span]:
        # What isn't such a context (a stranger chose it, or a newer release) is none.
        above = self._propagator.extract({_TRACEPARENT: parent}) if parent else None
        with self._tracer.start_as_current_span(
            name,
            context=above,
            kind=self._kinds[kind],
            attributes=dict(attributes),
            record_exception=False,  # its text may be a person's, or a secret's
            set_status_on_exception=False,
        ) as opened:
            span = _Span(opened)
            try:
                yield span
            except BaseException as error:
                span.failed(_kind_of(error))
                raise

    @override
    def context(self) -> str:
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        return carrier.get(_TRACEPARENT, "")


class _Span(Span):
    def __init__(self, span: OtelSpan) -> None:
        self._span = span
        self._failed = False

    @override
    def note(self, name: str, value: Value) -> None:
        self._span.set_attribute(name, value)

    @override
    def failed(self, kind: str) -> None:
        from opentelemetry.trace import StatusCode  # noqa: PLC0415 - see `_provider`

        if not self._failed:  # what it was called first says more than the error that leaves the block
            self._failed = True
            self._span.set_attribute("error.type", kind)
            self._span.set_status(StatusCode.ERROR)


def _kind_of(error: BaseException) -> str:
    refusal: Any = getattr(error, "refusal", None)
    return str(getattr(refusal, "reason", "") or type(error).__name__)
