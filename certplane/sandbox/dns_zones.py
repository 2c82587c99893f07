"""The zones of the sandbox's own DNS server: answers to questions (RFC 1034, 4.3.2) and updates (RFC 2136, 3).

Left out, since nothing in the sandbox needs it: DNSSEC, classes other than IN, zone transfers. It answers like BIND
does in `bind`: a CNAME is followed inside its zone, and across the server's zones only for who asks for recursion; a
wildcard answers for names that aren't there (RFC 4592). Not thread-safe: the server's loop owns it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import dns.flags
import dns.message
import dns.name
import dns.node
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdataset
import dns.rdatatype
import dns.rdtypes.ANY.CNAME
import dns.rdtypes.ANY.NS
import dns.rdtypes.ANY.SOA
import dns.rrset
import dns.update
import dns.zone

Hidden = Callable[[dns.name.Name, dns.rdata.Rdata], bool]
"""Whether a record is to be treated as not there."""

_MOST_CNAMES = 16


class ZoneStore:
    """All zones of one server."""

    def __init__(self, zone_files: Mapping[str, str]) -> None:
        """Load zones from `{origin: zone file}`."""
        self._zones: dict[dns.name.Name, dns.zone.Zone] = {}
        for origin, text in zone_files.items():
            name = dns.name.from_text(origin)
            self._zones[name] = dns.zone.from_text(text, origin=name, relativize=False)

    def answer(self, query: dns.message.Message, response: dns.message.Message, hidden: Hidden) -> None:
        """Fill `response`, which was made for `query`. Hidden records aren't there."""
        question = query.question[0]
        name, wants_recursion = question.name, bool(query.flags & dns.flags.RD)
        zone = self._zone_of(name)
        if zone is None:
            response.set_rcode(dns.rcode.SERVFAIL if wants_recursion else dns.rcode.REFUSED)
            return
        response.flags |= dns.flags.AA
        for _ in range(_MOST_CNAMES):
            if cut := self._delegation(zone, name):
                if not response.answer:
                    response.flags &= ~dns.flags.AA
                    self._refer(zone, cut, response)
                return
            records = self._visible(zone, name, hidden)
            exists = bool(records) or self._has_names_below(zone, name, hidden)
            if not exists and (source := self._source_of_synthesis(zone, name, hidden)):
                records, exists = self._visible(zone, source, hidden), True
            rdataset = _of_type(records, question.rdtype)
            if rdataset is not None:
                response.answer.append(_rrset(name, rdataset))
                return
            alias = _of_type(records, dns.rdatatype.CNAME)
            if alias is None:
                self._nothing(zone, response, exists=exists)
                return
            response.answer.append(_rrset(name, alias))
            target = alias[0]
            assert isinstance(target, dns.rdtypes.ANY.CNAME.CNAME)
            next_zone = self._zone_of(target.target)
            if next_zone is None or (next_zone is not zone and not wants_recursion):
                return
            name, zone = target.target, next_zone
        response.set_rcode(dns.rcode.SERVFAIL)

    def _source_of_synthesis(self, zone: dns.zone.Zone, name: dns.name.Name, hidden: Hidden) -> dns.name.Name | None:
        """The wildcard at the closest encloser of a name that isn't there (RFC 4592 3.3.1), None if there is none."""
        encloser = name.parent()
        while encloser != zone.origin and not self._visible(zone, encloser, hidden):
            if self._has_names_below(zone, encloser, hidden):
                break
            encloser = encloser.parent()
        source = dns.name.Name([b"*"]).concatenate(encloser)
        return source if self._visible(zone, source, hidden) else None

    def update(
        self, message: dns.update.UpdateMessage
    ) -> tuple[dns.rcode.Rcode, list[tuple[dns.name.Name, dns.rdata.Rdata]]]:
        """Carry out an update; returns the response code and the records that are new.

        Who may update was decided before. Prerequisites (RFC 2136, 2.4) aren't known here and are refused as NOTIMP.
        """
        zone = self._zones.get(message.zone[0].name)
        if zone is None:
            return dns.rcode.NOTAUTH, []
        if message.prerequisite:
            return dns.rcode.NOTIMP, []
        if any(not rrset.name.is_subdomain(zone.origin or dns.name.root) for rrset in message.update):
            return dns.rcode.NOTZONE, []
        added: list[tuple[dns.name.Name, dns.rdata.Rdata]] = []
        changed = False
        for rrset in message.update:
            if rrset.deleting is None:
                new = self._add(zone, rrset)
                added += [(rrset.name, rdata) for rdata in new]
                changed = changed or bool(new)
            else:
                changed = self._delete(zone, rrset) or changed
        if changed:
            _bump_serial(zone)
        return dns.rcode.NOERROR, added

    def _add(self, zone: dns.zone.Zone, rrset: dns.rrset.RRset) -> list[dns.rdata.Rdata]:
        node = zone.find_node(rrset.name, create=True)
        alias = node.get_rdataset(dns.rdataclass.IN, dns.rdatatype.CNAME)
        is_alias = rrset.rdtype == dns.rdatatype.CNAME
        # RFC 2136, 3.4.2.2: a CNAME beside other data, or other data beside a CNAME, is ignored silently.
        if (is_alias and alias is None and node.rdatasets) or (not is_alias and alias is not None):
            return []
        if is_alias:
            node.delete_rdataset(dns.rdataclass.IN, dns.rdatatype.CNAME)
        rdataset = node.find_rdataset(dns.rdataclass.IN, rrset.rdtype, create=True)
        new = [rdata for rdata in rrset if rdata not in rdataset]
        for rdata in rrset:
            rdataset.add(rdata, rrset.ttl)
        rdataset.ttl = rrset.ttl
        return new

    def _delete(self, zone: dns.zone.Zone, rrset: dns.rrset.RRset) -> bool:
        node = zone.get_node(rrset.name)
        if node is None:
            return False
        at_apex = rrset.name == zone.origin
        changed = False
        for rdataset in list(node.rdatasets):
            if rrset.rdtype not in {dns.rdatatype.ANY, rdataset.rdtype}:
                continue
            # RFC 2136, 3.4.2.3 and 3.4.2.4: the apex keeps its SOA and its name servers.
            if at_apex and rdataset.rdtype in {dns.rdatatype.SOA, dns.rdatatype.NS}:
                continue
            if rrset.deleting == dns.rdataclass.ANY:
                node.rdatasets.remove(rdataset)
                changed = True
            else:
                for rdata in rrset:
                    if rdata in rdataset:
                        rdataset.remove(rdata)
                        changed = True
                if not rdataset:
                    node.rdatasets.remove(rdataset)
        if not node.rdatasets:
            zone.delete_node(rrset.name)
        return changed

    def _zone_of(self, name: dns.name.Name) -> dns.zone.Zone | None:
        holding = [origin for origin in self._zones if name.is_subdomain(origin)]
        return self._zones[max(holding, key=len)] if holding else None

    def _delegation(self, zone: dns.zone.Zone, name: dns.name.Name) -> dns.name.Name | None:
        """The highest name from below the apex down to `name` that is delegated away."""
        origin = zone.origin or dns.name.root
        for labels in range(len(origin) + 1, len(name) + 1):
            _, below = name.split(labels)
            if zone.get_rdataset(below, dns.rdatatype.NS) is not None:
                return below
        return None

    def _refer(self, zone: dns.zone.Zone, cut: dns.name.Name, response: dns.message.Message) -> None:
        servers = zone.find_rdataset(cut, dns.rdatatype.NS)
        response.authority.append(_rrset(cut, servers))
        for server in servers:
            assert isinstance(server, dns.rdtypes.ANY.NS.NS)
            if glue := zone.get_rdataset(server.target, dns.rdatatype.A):
                response.additional.append(_rrset(server.target, glue))

    def _nothing(self, zone: dns.zone.Zone, response: dns.message.Message, *, exists: bool) -> None:
        """NODATA or NXDOMAIN, with the SOA for negative caching (RFC 2308, 3)."""
        if not exists:
            response.set_rcode(dns.rcode.NXDOMAIN)
        assert zone.origin is not None
        soa = zone.find_rdataset(zone.origin, dns.rdatatype.SOA)
        first = soa[0]
        assert isinstance(first, dns.rdtypes.ANY.SOA.SOA)
        response.authority.append(dns.rrset.from_rdata(zone.origin, min(soa.ttl, first.minimum), first))

    def _visible(self, zone: dns.zone.Zone, name: dns.name.Name, hidden: Hidden) -> list[dns.rdataset.Rdataset]:
        node = zone.get_node(name)
        found: list[dns.rdataset.Rdataset] = []
        for rdataset in node.rdatasets if node else ():
            kept = [rdata for rdata in rdataset if not hidden(name, rdata)]
            if kept:
                found.append(dns.rdataset.from_rdata_list(rdataset.ttl, kept))
        return found

    def _has_names_below(self, zone: dns.zone.Zone, name: dns.name.Name, hidden: Hidden) -> bool:
        return any(
            other != name and other.is_subdomain(name) and self._visible(zone, other, hidden) for other in zone.nodes
        )


def _of_type(
    records: list[dns.rdataset.Rdataset], record_type: dns.rdatatype.RdataType
) -> dns.rdataset.Rdataset | None:
    return next((rdataset for rdataset in records if rdataset.rdtype == record_type), None)


def _rrset(name: dns.name.Name, rdataset: dns.rdataset.Rdataset) -> dns.rrset.RRset:
    return dns.rrset.from_rdata_list(name, rdataset.ttl, list(rdataset))


def _bump_serial(zone: dns.zone.Zone) -> None:
    assert zone.origin is not None
    soa = zone.find_rdataset(zone.origin, dns.rdatatype.SOA)
    first = soa[0]
    assert isinstance(first, dns.rdtypes.ANY.SOA.SOA)
    newer = dns.rdataset.from_rdata(soa.ttl, first.replace(serial=first.serial % 0xFFFFFFFF + 1))
    zone.replace_rdataset(zone.origin, newer)
