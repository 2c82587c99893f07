# What the maintainer scripts of certplane-agent and certplane-broker share. scripts/build-debs writes it into each of them, below
# `package`, `units` (patterns for systemctl) and, in postrm, what is the package's on a purge.
#
# Nothing is started or enabled by an installation. What runs is stopped before its files are replaced, for a program that
# imports a module of another release half-way is neither; what ran is started again, and nothing else.
ran="/run/$package.ran"

systemd_runs() { [ -d /run/systemd/system ]; }

stop_what_runs() {
    systemd_runs || return 0
    # Beside what an upgrade stopped that then failed: nothing has started it again.
    systemctl list-units --full --plain --no-legend --state=active,activating,reloading $units | cut -d' ' -f1 >>"$ran"
    # Orders under way get the time that the unit gives them.
    while read -r unit; do systemctl stop "$unit" || true; done <"$ran"
}

start_what_ran() {
    systemd_runs || return 0
    systemctl daemon-reload
    [ -e "$ran" ] || return 0
    while read -r unit; do
        if ! systemctl start "$unit"; then
            # The package is whole, its configuration or database isn't what it wants: that is no fault of dpkg's.
            echo "$package: $unit ran before and doesn't start now, for the reason below; mend it, then: systemctl start $unit" >&2
            journalctl --no-pager --quiet --lines=5 --output=cat --unit="$unit" >&2 || true
        fi
    done <"$ran"
    rm -f "$ran"
}
