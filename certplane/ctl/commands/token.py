"""`certplanectl token`, and how the commands for new machines ask for one."""

from __future__ import annotations

import argparse
from datetime import timedelta

from certplane.ctl.client import Client
from certplane.ctl.session import Session
from certplane.ctl.show.words import moment
from certplane.errors import Reason, RefusalError
from certplane.runtime.command import OK
from certplane.v1 import enrollment_pb2


async def token(options: argparse.Namespace, session: Session) -> int:
    """A one-time token, alone on standard output; what must be known with it is on standard error."""
    async with session.client() as client:
        made = await asked(client, options.name, options.lifetime, dry_run=options.dry_run)
    out = session.out
    if not out.for_people:
        out.message(made, made.token)
        return OK
    ends = moment(made.expire_time, session.now())
    if options.dry_run:
        session.say(f"dry run: a token for {made.identity} would be made, that ends {ends}")
        return OK
    out.lines([made.token])
    session.say(f"for {made.identity} alone, once, until {ends}; provisioner {made.provisioner} of {made.ca_url}")
    session.say(f"the CA's root has the SHA-256 {made.ca_root_fingerprint}")
    return OK


async def asked(
    client: Client, name: str, lifetime: timedelta | None, *, dry_run: bool
) -> enrollment_pb2.CreateBootstrapTokenResponse:
    """A new token, or what it would be.

    Raises:
        RefusalError: there is none for this name.
    """
    request = enrollment_pb2.CreateBootstrapTokenRequest(identity=name, dry_run=dry_run)
    if lifetime is not None:
        request.lifetime.FromTimedelta(lifetime)
    return await client.bootstrap_token(request)


async def asked_if_any(
    client: Client, name: str, lifetime: timedelta | None, *, dry_run: bool
) -> enrollment_pb2.CreateBootstrapTokenResponse | None:
    """The same; None where the broker makes no tokens.

    Raises:
        RefusalError: it makes some, and none for this name.
    """
    try:
        return await asked(client, name, lifetime, dry_run=dry_run)
    except RefusalError as error:
        if error.refusal.reason is not Reason.BOOTSTRAP_NOT_CONFIGURED:
            raise
        return None
