"""What other programs left at this host's configured paths, taken over: certificates until they are due, an identity.

A certificate: `install.takeover` judges it, the version store makes it version 0, and the lineage's status says that it
is in force. Nothing is ordered, no service is reloaded, since what it reads hasn't changed. The broker knows nothing of
such a certificate: whether it is revoked, or its CA wants it renewed earlier, this host doesn't hear.

An identity of the internal CA, at `identity.cert` and `identity.key`: it must be for this host's name, in force, and
lead to the pinned root. It is used at once, without a token, and renewed when it is due.

Whoever made such files may still renew them: `still_managed` names that program and what is to be done about it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime

from cryptography import x509

from certplane.agent.install.lineage import FileVersionStore
from certplane.agent.install.managed import Manager, manager_of
from certplane.agent.install.material import NoPairError, Outputs, Part, rebuilt
from certplane.agent.install.takeover import NotTakenOverError, Wanted, check_standing
from certplane.agent.lineage import Lineage
from certplane.agent.model import Version
from certplane.agent.ports import IdentityAuthority
from certplane.agent.renewal.due import LineageSpec, due_time
from certplane.agent.renewal.status import kept, new_status
from certplane.errors import CertplaneError, RefusalError
from certplane.pki.chain import leaf_facts
from certplane.pki.keys import check_public_key
from certplane.stepca.errors import UnreachableError

logger = logging.getLogger(__name__)


def wanted_of(spec: LineageSpec, outputs: Outputs) -> Wanted:
    """What a pair at a certificate's paths must be to be kept."""
    with_chain = {Part.FULLCHAIN, Part.CHAIN, Part.COMBINED, Part.PKCS12}
    return Wanted(spec.dns_names, spec.key_type, chain=not with_chain.isdisjoint(outputs.paths()))


def take_over_certificate(lineage: Lineage, store: FileVersionStore, outputs: Outputs, now: datetime) -> Version | None:
    """Take over the pair at a certificate's paths, if there is one and it may be kept. Blocks.

    Why it may not is logged. None where nothing was taken over.

    Raises:
        CertplaneError: the disk refuses.
    """
    spec = lineage.spec
    if _is_ordered(lineage):
        return None
    # Before links are replaced: afterwards nothing says any more whose they were.
    managers = managers_of(outputs)
    try:
        version = store.take_over(lambda found: check_standing(found, wanted_of(spec, outputs), now))
    except NotTakenOverError as error:
        logger.warning("%s: what stands at its paths is not taken over: %s", spec.name, error)
        return None
    if version is None:
        return None
    logger.info(
        "%s: the pair at its paths is taken over as version 0, until %s; it is renewed from %s on",
        spec.name,
        _text(version.not_after),
        _text(due_time(spec, version)),
    )
    for manager in managers:
        logger.warning("%s: %s", spec.name, manager)
    return version


def note_taken_over(lineage: Lineage, version: Version, now: datetime) -> None:
    """Have the status say that what was taken over is in force, so that nobody reloads a service for it. Blocks.

    A key that waits for its first order isn't needed any more, and would be asked with at once.
    """
    status = lineage.statuses.load() or new_status(lineage.name, now)
    if status.confirmed_version is None:
        lineage.keys.abandon()
        lineage.statuses.save(kept(status, version, now, lineage.spec.asked.settings))


def would_take_over(lineage: Lineage, store: FileVersionStore, outputs: Outputs, now: datetime) -> str:
    """What the next start would take over, for a person; empty if nothing. Blocks; changes nothing.

    Raises:
        CertplaneError: what stands there can't be kept, and why.
    """
    found = {output.part: output.data for output in store.standing() if output.data is not None}
    if not found or _is_ordered(lineage):
        return ""
    check_standing(found, wanted_of(lineage.spec, outputs), now)
    end = leaf_facts(rebuilt(found)[Part.CERT].decode("ascii")).not_after
    return f"the pair at its paths is taken over at the agent's start, and kept until it is due; it ends {_text(end)}"


def _is_ordered(lineage: Lineage) -> bool:
    """Whether the broker has an order of this lineage, whose certificate is on its way."""
    pending = lineage.keys.pending()
    return pending is not None and bool(pending.order_id)


def managers_of(outputs: Outputs) -> list[Manager]:
    """Which programs still renew what stands at these paths. Blocks."""
    return list(dict.fromkeys(found for path in outputs.paths().values() if (found := manager_of(path)) is not None))


async def take_over_identity(
    name: str, lineage: Lineage, store: FileVersionStore, authority: IdentityAuthority, now: datetime
) -> Version | None:
    """Take over the identity at `identity.cert` and `identity.key`, if there is one and it is this CA's and host's.

    Why not is logged, since a token helps then.

    Raises:
        UnreachableError: the CA can't be asked for its root.
        CertplaneError: the disk refuses.
    """
    standing = await lineage.disk.run(store.standing)
    found = {output.part: output.data for output in standing if output.data is not None}
    if not found:
        return None
    try:
        certificate_pem, chain_pem = _identity_pair(found, name, now)
        await authority.vouch(certificate_pem, chain_pem)
    except UnreachableError:  # in a while it may be asked: nobody is to look for a token
        raise
    except CertplaneError as error:
        logger.warning("the identity at identity.cert and identity.key is not taken over: %s", error)
        return None

    def check(again: Mapping[Part, bytes]) -> None:
        if again != found:
            raise NotTakenOverError("the files at identity.cert and identity.key have changed meanwhile")

    version = await lineage.disk.run(store.take_over, check)
    if version is not None:
        await lineage.disk.run(lineage.keys.abandon)  # of an enrollment that failed
        logger.info(
            "the identity at identity.cert and identity.key is taken over: %s until %s", name, _text(version.not_after)
        )
    return version


async def would_take_over_identity(
    name: str, lineage: Lineage, store: FileVersionStore, authority: IdentityAuthority, now: datetime
) -> str:
    """What the next start would take over, for a person; empty if nothing. Changes nothing.

    Raises:
        CertplaneError: why it isn't taken over.
    """
    standing = await lineage.disk.run(store.standing)
    found = {output.part: output.data for output in standing if output.data is not None}
    if not found:
        return ""
    certificate_pem, chain_pem = _identity_pair(found, name, now)
    await authority.vouch(certificate_pem, chain_pem)
    end = leaf_facts(certificate_pem).not_after
    return f"what stands at identity.cert and identity.key is taken over at the agent's start; valid until {_text(end)}"


def _identity_pair(found: Mapping[Part, bytes], name: str, now: datetime) -> tuple[str, str]:
    """The leaf and its chain in PEM.

    Raises:
        NotTakenOverError: they are no identity of this host.
    """
    enroll = "get a one-time token and run `certplane-agent enroll`"
    try:
        files = rebuilt(found)
    except NoPairError as error:
        raise NotTakenOverError(str(error), remedy=enroll) from error
    certificate_pem = files[Part.CERT].decode("ascii")
    facts = leaf_facts(certificate_pem)
    names = (*facts.dns_names, *facts.uris)
    if names != (name,):
        text = f"it is for {', '.join(names) or 'no name'}, and identity.name is {name}"
        raise NotTakenOverError(text, remedy=f"correct identity.name, or {enroll}")
    if facts.not_after <= now:
        raise NotTakenOverError(f"it expired at {_text(facts.not_after)}", remedy=enroll)
    try:
        check_public_key(x509.load_pem_x509_certificate(certificate_pem.encode()).public_key())
    except RefusalError as error:
        raise NotTakenOverError(f"its key can't be used: {error.refusal.message}", remedy=enroll) from error
    return certificate_pem, files[Part.CHAIN].decode("ascii")


def _text(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"
