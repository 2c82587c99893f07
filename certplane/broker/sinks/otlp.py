"""A sink that is an OpenTelemetry collector: log records over gRPC (OTLP 1.x, `LogsService.Export`).

Its messages come with the extra `certplane[telemetry]`. A record's body is the event's JSON; `event_name` and the
attribute `event.id` find one. What a collector rejects (`partial_success`) isn't delivered: the batch is sent again.
"""

from __future__ import annotations

import importlib
import socket
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import grpc
import msgspec
from typing_extensions import override

from certplane import __version__
from certplane.broker.ports import SecretSource
from certplane.broker.sinks.ports import AuditSink, SinkError, StoredEvent
from certplane.broker.sinks.settings import OtlpSinkSettings
from certplane.errors import ConfigurationError, ConfigurationProblem, RefusalError
from certplane.runtime.text import printable

_SEVERITIES: Final = {"info": 9, "warning": 13, "error": 17}  # SeverityNumber of the log data model
_PORT: Final = 4317
_SHOWN: Final = 200
_OPTIONS: Final = (("grpc.enable_http_proxy", 0),)
"""Audit events go where the configuration says, whatever the environment says."""


class _Facts(msgspec.Struct):
    event_type: str = ""
    severity: str = "info"


class OtlpSink(AuditSink):
    """An `AuditSink` over one channel."""

    def __init__(self, settings: OtlpSinkSettings, roots: bytes | None, secrets: SecretSource, *, key: str) -> None:
        """Nothing is sent yet; the token is read for each batch.

        Args:
            settings: The section.
            roots: PEM of who verifies the collector; None: the public ones.
            secrets: Where the token is read.
            key: Of the section in broker.yml, for messages.

        Raises:
            ConfigurationError: the messages aren't installed.
        """
        try:
            self._service: Any = importlib.import_module("opentelemetry.proto.collector.logs.v1.logs_service_pb2")
            calls: Any = importlib.import_module("opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc")
        except ImportError as error:
            problem = "needs the packages of OpenTelemetry, which aren't installed"
            remedy = "install the release's optional.txt in place of broker.txt (docs/operations.md, Install)"
            raise ConfigurationError([ConfigurationProblem("", None, key, problem, remedy)]) from error
        self._settings = settings
        self._secrets = secrets
        parts = urlsplit(settings.endpoint)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        target = f"dns:///{host}:{parts.port or _PORT}"
        if parts.scheme == "https":
            self._channel = grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(roots), options=_OPTIONS)
        else:
            self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        self._export = calls.LogsServiceStub(self._channel).Export

    @override
    async def send(self, events: Sequence[StoredEvent]) -> None:
        settings = self._settings
        metadata = []
        try:
            if settings.token_secret:
                token = await self._secrets.read(settings.token_secret)
                if not token.isascii() or not token.isprintable():
                    raise SinkError(f"the secret {settings.token_secret!r} has characters that no token has")
                metadata.append(("authorization", f"Bearer {token}"))
            answer = await self._export(
                self._request(events), timeout=settings.timeout.total_seconds(), metadata=metadata
            )
        except RefusalError as error:
            raise SinkError(f"a secret can't be read: {error.refusal.message}") from error
        except grpc.aio.AioRpcError as error:
            raise SinkError(f"it answered {error.code().name}: {printable(error.details() or '', _SHOWN)}") from error
        if count := answer.partial_success.rejected_log_records:
            raise SinkError(f"it rejected {count}: {printable(answer.partial_success.error_message, _SHOWN)}")

    @override
    async def close(self) -> None:
        await self._channel.close()

    def _request(self, events: Sequence[StoredEvent]) -> Any:
        request = self._service.ExportLogsServiceRequest()
        resource_logs = request.resource_logs.add()
        facts = {"service.name": "certplane-broker", "service.version": __version__, "host.name": socket.gethostname()}
        for name, value in facts.items():
            resource_logs.resource.attributes.add(key=name).value.string_value = value
        scope = resource_logs.scope_logs.add()
        scope.scope.name = "certplane.audit"
        for event in events:
            said = msgspec.json.decode(event.text, type=_Facts)
            record = scope.log_records.add(
                time_unix_nano=int(event.time.timestamp() * 1_000_000) * 1000,
                severity_number=_SEVERITIES.get(said.severity, 9),
                severity_text=said.severity,
                event_name=f"certplane.{said.event_type}",
            )
            record.body.string_value = event.text
            record.attributes.add(key="event.id").value.string_value = event.event_id
        return request
