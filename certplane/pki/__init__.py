"""Names, keys, CSRs, chains and identities: bytes in, values out.

Pure: no clock, no disk, no network. What a stranger sends (a CSR, a client certificate) ends in a value or in a
`RefusalError`, never in another exception. Start with `names` and `keys`; `csr` reads what asks for a certificate,
`chain` what a public CA answers, `identity` what a client of the broker presents (`issuer_path` verifies it by a
`trust_bundle`); `lifetime` says when to renew.
"""
