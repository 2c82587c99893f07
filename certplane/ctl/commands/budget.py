"""`certplanectl budget` and `budget forecast`."""

from __future__ import annotations

import argparse

from certplane.ctl.filters import selection
from certplane.ctl.session import Session, misuse
from certplane.ctl.show.budget import columns, forecast_facts, issuer_lines, more_lines, rows
from certplane.runtime.command import FAILED, OK
from certplane.runtime.terminal import Style
from certplane.v1 import budget_pb2


async def budget(options: argparse.Namespace, session: Session) -> int:
    """What is left, and who waits."""
    request = budget_pb2.GetBudgetRequest(issuers=options.of_issuer, dns_names=options.of_name)
    async with session.client() as client:
        answer = await client.budget(request)
    out, now = session.out, session.now()
    if not out.for_people:
        for issuer in answer.issuers:
            out.message(issuer)
        return OK
    if found := [*rows(answer.issuers, wide=out.wide)]:
        out.table(columns(now), found)
    for issuer in answer.issuers:
        for line, style in issuer_lines(issuer, now):
            out.line(line, style, folded=True)
    for line in more_lines(answer.issuers, wide=out.wide):
        out.line(line, folded=True)
    return OK


async def forecast(options: argparse.Namespace, session: Session) -> int:
    """When the last of a selection would be ordered."""
    if options.of_issuer or options.of_name:
        raise misuse("--issuer and --name stand before `forecast`", "write them after it: they are its selection")
    request = budget_pb2.ForecastOrdersRequest(
        selection=selection(options, "budget forecast", session.now()), issuer=options.at
    )
    async with session.client() as client:
        answer = await client.forecast(request)
    out = session.out
    if not out.for_people:
        out.message(answer)
    elif answer.certificate_count:
        bad = {"forecast": Style.BAD} if answer.forecast.never_count else None
        out.facts(forecast_facts(answer, session.now()), bad)
    if not answer.certificate_count:
        session.say(f"the selection picks no certificate in force; compare it with `{session.command('certs')}`")
        return FAILED
    return OK
