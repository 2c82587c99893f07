"""Below which names others register theirs, by the Public Suffix List (https://publicsuffix.org/list/).

The list is the one of the installed package `publicsuffixlist`, whose version is its date: nothing is fetched. Names
are canonical (`certplane.pki.names`).

The first question of each kind reads the list: 20 ms and a megabyte. A broker's comes with its policy, on a thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

from publicsuffixlist import PSLFILE, PublicSuffixList

_PREFIX: Final = "xn--"


def is_public_suffix(name: str) -> bool:
    """Whether registries give out names right below `name`, such as `com` and `co.uk`: no CA issues for it or `*.` it.

    Of the list's ICANN section alone, as CAs look it up (CA/Browser Forum's Baseline Requirements 3.2.2.6), so that
    `github.io`, whose owner has put it on the list, isn't one. A top-level domain that the list doesn't have is.
    """
    return _suffixes(only_icann=True).is_public(name)


def registered_domain(name: str) -> str:
    """The name right below a public suffix that `name` or `*.name` belongs to: what CAs count certificates by.

    Of the whole list, private section included, as Let's Encrypt counts (https://letsencrypt.org/docs/rate-limits/).
    A name that is a public suffix itself stands for itself, as it does there.
    """
    name = name.removeprefix("*.")
    return _suffixes(only_icann=False).privatesuffix(name) or name


@cache
def _suffixes(*, only_icann: bool) -> PublicSuffixList:
    return PublicSuffixList([*_lines()], accept_encoded_idn=False, only_icann=only_icann)


def _lines() -> Iterator[str]:
    """The list's rules and marks with A-labels, which its names are (nothing else of IDNA is to be done).

    The package has IDNA made of each line, ASCII or not: that takes 0.3 seconds.
    """
    for line in Path(PSLFILE).read_text(encoding="utf-8").splitlines():
        if line.startswith("// ===") or line.isascii():
            yield line
        elif not line.startswith("//"):
            yield ".".join(map(_encoded, line.split(".")))


def _encoded(label: str) -> str:
    return label if label.isascii() else f"{_PREFIX}{label.encode('punycode').decode('ascii')}"
