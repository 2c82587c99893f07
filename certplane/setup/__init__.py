"""Setting up a machine for a program: files and folders that are planned, shown, and then made, and safe to make twice.

    plan.py         the steps as values: folders, files, remarks; pure
    look.py         what each step would do on this machine; changes nothing
    apply.py        doing it, and telling it
    account.py      the program's user, and a part of the work done as that user
    asking.py       what a command wasn't told, asked for at a terminal
    internal_ca.py  the internal CA: how it is known, its roots, a token for it
    yaml_text.py    texts in configuration files

Start at `plan.Plan`. A file that is there and differs is never overwritten unasked; `--dry-run` prints what `look`
finds, by the same words that `apply` tells.
"""
