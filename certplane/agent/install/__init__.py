"""Certificates on this host's disk: versions, the one switch, and what follows it.

A lineage is a directory of the agent's state:

    <lineage>/
      current -> versions/3         the one symlink whose rename switches key, certificate and chain together
      held                          a second one, while files that stand at the paths become links
      versions/3/                   privkey.pem cert.pem chain.pem fullchain.pem combined.pem metadata.json
                                    bundle.p12, where a PKCS#12 output is configured
      versions/0/                   what stood at the configured paths before Certplane came
      pending/                      the key store's: a key that waits for its certificate
      replaced/1/                   files that stood at configured paths and were no pair; never removed
      status.json                   the `LineageStatus`

and the configured paths are symlinks to `<lineage>/current/<file>` (or copies: `InstallMode.COPY`).

Places to start:
    lineage     `FileVersionStore(directory, outputs, keys=..., mode=...)`: the port `VersionStore`
    versions    the directories `versions/<n>`: written whole, read back, removed whole
    linking     configured paths as symlinks
    copying     configured paths as copies, with a journal
    keeping     what stood at the paths: version 0, or replaced/
    takeover    what of that is kept in force until it is due, instead of a certificate that is ordered
    managed     which other program renews what stands at a path
    access      owner, group and mode that are configured for an output
    trial       whether the next version could be installed, tried out without a change
    pkcs12      the PKCS#12 file that is derived from a version's PEM files
    password    its password, from a file
    steps       every step, by the name of its failpoints
    activation  `Activator`: install, reload, look, roll back; the result says which
    probe       `TlsProbe`: what a local service serves
    hook        `ShellHookRunner`: the operator's command in a process group of its own
    hook_programs  whether its programs are there
    status      `JsonStatusFile(directory)`
    lock        `StateLock(state_dir)`: one agent per state directory
"""
