"""Between the messages of WatchMyCertificates and the broker's values."""

from __future__ import annotations

from typing import Final

from certplane.broker.services.convert import REVOCATION_NUMBERS, invalid_request
from certplane.broker.watches.model import CertificateNews, Goodbye, Heartbeat, InForce, Listening, Told
from certplane.fleet_report.messages import CAUSE_NUMBERS
from certplane.rpc.times import put_time
from certplane.v1 import renewal_pb2 as pb

_LONGEST_VERSION: Final = 64
"""Bytes (proto, WatchMyCertificatesRequest.client_version)."""


def client_version(text: str) -> str:
    """What a service says of itself.

    Raises:
        EdgeRefusalError: REQUEST_INVALID.
    """
    if len(text.encode()) > _LONGEST_VERSION:
        raise invalid_request("client_version", f"must be at most {_LONGEST_VERSION} bytes")
    if not text.isprintable():
        raise invalid_request("client_version", "must be printable")
    return text


def watch_message(told: Told, broker_version: str) -> pb.WatchMyCertificatesResponse:
    """A message to a service."""
    response = pb.WatchMyCertificatesResponse()
    match told:
        case CertificateNews():
            _put_news(told, response.news)
        case Listening():
            put_time(told.broker_time, response.listening.broker_time)
            response.listening.heartbeat_interval.FromTimedelta(told.heartbeat_interval)
            _put_in_force(told.in_force, response.listening.in_force)
            response.listening.broker_version = broker_version
        case Heartbeat():
            put_time(told.broker_time, response.heartbeat.broker_time)
        case Goodbye():
            response.goodbye.reconnect_delay.FromTimedelta(told.reconnect_delay)
            response.goodbye.reason = told.reason
        case InForce():
            _put_in_force(told, response.in_force)
    return response


def _put_in_force(told: InForce, message: pb.WatchMyCertificatesResponse.InForce) -> None:
    message.policy_hash = told.policy_hash
    message.retry_epoch = told.retry_epoch


def _put_news(told: CertificateNews, message: pb.WatchMyCertificatesResponse.CertificateNews) -> None:
    message.certificate_id = told.certificate_id
    message.profile = told.profile
    message.dns_names.extend(told.dns_names)
    message.serial_number = told.serial_number
    message.public_key_sha256 = told.public_key_sha256
    put_time(told.create_time, message.create_time)
    put_time(told.not_after, message.not_after_time)
    put_time(told.renew_time, message.renew_time)
    message.renew_cause = CAUSE_NUMBERS[told.renew_cause]
    message.renew_reason = told.renew_reason
    message.renewal_request_id = told.renewal_request_id
    message.new_key = told.new_key
    if told.revoke_time is not None:
        put_time(told.revoke_time, message.revoke_time)
    if told.revocation_reason is not None:
        message.revocation_reason = REVOCATION_NUMBERS[told.revocation_reason]
