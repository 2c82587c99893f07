"""What `certplane-broker policy test` and `policy diff` find, as rows ready to be shown."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

from certplane.broker.commands import Row
from certplane.broker.policy.cases import CaseResult, run_cases
from certplane.broker.policy.changes import PolicyChanges, compare
from certplane.broker.policy.document import load_policy
from certplane.config.document import Document

CASE_COLUMNS: Final = ("result", "line", "identity", "profile", "dns_names", "expected", "outcome", "why")
CHANGE_COLUMNS: Final = ("change", "subject", "identity", "profile", "name", "detail")
COUNT_COLUMNS: Final = ("subject", "before", "after", "gained", "lost")


def test_policy(cases: Path, policy: Path, private_issuers: Collection[str] | None) -> list[Row]:
    """What a policy says to each case of a file; `result` is `passed` or `failed`.

    Args:
        cases: The file of cases (`certplane.broker.policy.cases`).
        policy: The policy file.
        private_issuers: As `load_policy`'s.

    Raises:
        ConfigurationError: everything that is wrong with one of the files.
    """
    loaded = load_policy(policy, private_issuers)
    document = Document.read(cases)
    return [_case_row(result, document.source.file) for result in run_cases(document, loaded)]


def failures(rows: Collection[Row]) -> list[str]:
    """A line for each case that failed: where it stands, what came of it, and why."""
    return [
        f"{row['file']}:{row['line']}: {row['case']}: expected {row['expected']}, got {row['outcome']}"
        + (f": {row['why']}" if row["why"] else "")
        for row in rows
        if row["result"] == "failed"
    ]


def diff_policies(old: Path, new: Path, private_issuers: Collection[str] | None) -> Row:
    """What the policy of one file gives that the other's doesn't. Arguments as of `test_policy`.

    Raises:
        ConfigurationError: everything that is wrong with one of the files.
    """
    return changes_row(compare(load_policy(old, private_issuers), load_policy(new, private_issuers)))


def changes_row(changes: PolicyChanges) -> Row:
    """Changes of a policy as `policy diff` shows them; fields that don't belong to a change's subject are left out."""
    return {
        "before_hash": changes.before_hash,
        "after_hash": changes.after_hash,
        "counts": [
            {
                "subject": count.subject.value,
                "before": count.before,
                "after": count.after,
                "gained": count.gained,
                "lost": count.lost,
            }
            for count in changes.counts
        ],
        "changes": [
            {"change": change.change.value, "subject": change.subject.value}
            | {key: text for key in CHANGE_COLUMNS[2:] if (text := getattr(change, key))}
            for change in changes.changes
        ],
    }


def _case_row(result: CaseResult, file: str) -> Row:
    case = result.case
    return {
        "result": "passed" if result.passed else "failed",
        "file": file,
        "line": result.line,
        "case": result.key,
        "identity": case.identity,
        "profile": case.profile,
        "dns_names": list(case.dns_names),
        "key_type": case.key_type.value,
        "expected": case.expect.value,
        "outcome": result.outcome.value,
        "why": result.why,
    }
