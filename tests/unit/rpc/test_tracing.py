"""Spans: off they cost nothing and say nothing; on, a stranger's context is none, and errors are words, not texts."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from certplane.errors import OperationError, Reason, RefusalError
from certplane.rpc.otlp import OtelTracer, traced, why_unusable
from certplane.rpc.tracing import client_interceptors, context_in, context_of
from certplane.runtime import tracing
from certplane.runtime.tracing import Collector, SpanKind

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def kept() -> Iterator[InMemorySpanExporter]:
    """The spans of this process, for the length of a test."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.begin(OtelTracer(provider))
    yield exporter
    tracing.begin(None)
    provider.shutdown()


def only(exporter: InMemorySpanExporter) -> ReadableSpan:
    (span,) = exporter.get_finished_spans()
    return span


def test_off() -> None:
    """Nothing is kept, no context is made, and channels have no interceptor."""
    with tracing.span("a") as span:
        span.note("b", 1)
        span.failed("c")
        assert tracing.context() == ""
    assert not tracing.on()
    assert client_interceptors() == []


def test_below_a_context(kept: InMemorySpanExporter) -> None:
    """What crosses as text is the parent; within, the open span is."""
    with tracing.span("served", SpanKind.SERVER, parent=PARENT):
        inner = tracing.context()
        with tracing.span("asked", SpanKind.CLIENT, attributes={"n": 1}):
            pass
    asked, served = kept.get_finished_spans()
    assert served.parent is not None
    assert asked.parent is not None
    assert served.context is not None
    assert f"{served.parent.trace_id:032x}-{served.parent.span_id:016x}" in PARENT
    assert asked.parent.span_id == served.context.span_id
    assert inner.startswith("00-0af7651916cd43dd8448eb211c80319c-")
    assert len(client_interceptors()) == 1


@pytest.mark.parametrize(
    "given",
    ["", "x" * 55, "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "zz" + PARENT[2:], PARENT + "-more", PARENT.upper() * 99],
)
def test_what_is_no_context(kept: InMemorySpanExporter, given: str) -> None:
    """It is passed over: the span is a root, whatever was sent."""
    with tracing.span("a", parent=context_in(given)):
        pass
    assert only(kept).parent is None


def test_metadata() -> None:
    """The key is W3C's; other keys and kinds say nothing."""
    assert context_of([("x", "y"), ("traceparent", PARENT)]) == PARENT
    assert context_of([("traceparent", PARENT.encode())]) == ""
    assert context_of(None) == ""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        pytest.param(RefusalError(Reason.RATE_LIMITED, "a secret text"), "RATE_LIMITED", id="a refusal"),
        pytest.param(ValueError("a secret text"), "ValueError", id="a fault"),
    ],
)
def test_an_error_is_a_word(kept: InMemorySpanExporter, error: Exception, kind: str) -> None:
    """A text may hold anything; the log has it."""
    with pytest.raises(type(error)), tracing.span("a"):
        raise error
    span = only(kept)
    assert span.attributes == {"error.type": kind}
    assert not span.status.is_ok
    assert "secret" not in span.to_json()


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that is to trace and can't says what to install, and doesn't start without a word."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    program = traced(Collector("127.0.0.1:9", secure=False, ca_bundle=None, share=1), "certplane-broker")
    with pytest.raises(OperationError, match="install Certplane's extra `telemetry`"), program:
        pass
    assert not tracing.on()


def test_a_bundle_that_is_not_there(tmp_path: Path) -> None:
    """The key and the file are named."""
    unusable = why_unusable(Collector("127.0.0.1:9", secure=True, ca_bundle=tmp_path / "ca.pem", share=1))
    assert unusable is not None
    assert (unusable.key, unusable.remedy) == ("ca_bundle", f"look at {tmp_path / 'ca.pem'}")
    assert why_unusable(None) is None


def test_what_the_library_says_of_each_batch_is_said_once_an_hour(caplog: pytest.LogCaptureFixture) -> None:
    """By whichever of its loggers, and not each try: a collector that is away for a day would fill the log."""
    exporter = logging.getLogger("opentelemetry.exporter.otlp.proto.grpc.exporter")
    with traced(Collector("127.0.0.1:9", secure=False, ca_bundle=None, share=1), "certplane-test"):
        for count in range(3):
            exporter.warning("Transient error %s, retrying", count)
            exporter.error("Failed to export %s\x1b[31m", count)
        logging.getLogger("opentelemetry.sdk._shared_internal").warning("Queue is full")
    exporter.error("said by somebody else")
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ("certplane.tracing", "spans can't be sent: Failed to export 0 [31m"),
        ("certplane.tracing", "spans can't be sent: Queue is full"),
        (exporter.name, "said by somebody else"),
    ]
