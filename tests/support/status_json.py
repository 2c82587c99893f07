"""`certplane-agent status --json` as tests read it: flat, by the names of the agent's own values.

Programs of releases before the common dialect wrote it so; theirs is passed on as it is.
"""

from __future__ import annotations

import json
import re
from typing import Any


def status_document(text: str) -> dict[str, Any]:
    """The whole report."""
    document: dict[str, Any] = json.loads(text)
    if "identity_name" in document:
        return document
    link = document["broker"]
    skew = link.get("clockSkew")
    return {
        "identity_name": document["identityName"],
        "running": document.get("running", ""),
        "identity": _flat(document["identity"]),
        "certificates": [_flat(each) for each in document.get("certificates", ())],
        "broker": {
            "phase": link["phase"],
            "since": link.get("sinceTime"),
            "last_error": link.get("lastError", ""),
            "next_attempt_time": link.get("nextAttemptTime"),
            "unacknowledged_reports": link["unacknowledgedReports"],
            "last_connected_time": link.get("lastConnectedTime"),
            "broker_version": link.get("brokerVersion", ""),
            "clock_skew_seconds": None if skew is None else float(skew.removesuffix("s")),
            "broker_url": link.get("brokerUrl", ""),
        },
    }


def status_by_name(text: str) -> dict[str, dict[str, Any]]:
    """The identity and the certificates by name."""
    document = status_document(text)
    return {each["name"]: each for each in [document["identity"], *document["certificates"]]}


def _flat(each: dict[str, Any]) -> dict[str, Any]:
    installed, served = each.get("installed", {}), each.get("served", {})
    return {
        "name": each["name"],
        "state": each["state"].removeprefix("STATE_").lower(),
        "version": _number(installed.get("version")),
        "newest_version": _number(each.get("issued", {}).get("version")),
        "dns_names": each.get("dnsNames", []),
        "serial_number": installed.get("serialNumber", ""),
        "not_before": installed.get("notBeforeTime"),
        "not_after": installed.get("notAfterTime"),
        "renew_time": each.get("renewTime"),
        "expired": each["expired"],
        "overdue": each["overdue"],
        "certificate_id": installed.get("certificateId", ""),
        "order_id": each.get("orderId", ""),
        "renew_reason": each.get("renewReason", ""),
        "failures": each["requestFailures"],
        "activation_failures": each["activationFailures"],
        "next_attempt_time": each.get("nextAttemptTime"),
        "last_error": each.get("lastError", ""),
        "update_time": each["updateTime"],
        "failed_step": each.get("failedStep", "").removeprefix("STEP_").lower(),
        "activate_after": each.get("activateTime"),
        "served_serial_number": served.get("serialNumber", ""),
        "served_version": _number(served.get("version")),
        "served_not_after": served.get("notAfterTime"),
        "verify_time": served.get("observeTime"),
        "verify_error": each.get("verifyError", ""),
        "verify_failures": each["verifyFailures"],
        "next_verify_time": each.get("nextVerifyTime"),
        "health": each["health"].removeprefix("HEALTH_"),
        "severity": each["severity"],
        "health_text": each.get("healthReason", ""),
        "remedy": each.get("healthRemedy", ""),
    }


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)


_COLUMNS = {
    "not_before_time": "not_before",
    "not_after_time": "not_after",
    "renew_time": "renew",
    "create_time": "created",
    "deliver_time": "delivered",
    "revoke_time": "revoked",
}


def broker_rows(text: str) -> list[dict[str, Any]]:
    """What a command of certplane-broker prints, an object a line, by the names of its columns."""
    return [_snake(json.loads(line)) for line in text.splitlines()]


def _snake(value: Any) -> Any:
    if isinstance(value, list):
        return [_snake(each) for each in value]
    if not isinstance(value, dict):
        return value
    named = {re.sub(r"[A-Z]", lambda found: f"_{found[0].lower()}", name): each for name, each in value.items()}
    return {_COLUMNS.get(name, name): _snake(each) for name, each in named.items()}
