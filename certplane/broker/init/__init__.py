"""`certplane-broker init`: from an empty machine to a broker that can start; and its own certificate from then on.

    command.py      the story as a person sees it
    parser.py       the arguments
    wanted.py       what was asked for, as values
    text.py         broker.yml and policy.yml; pure
    certificate.py  the broker's own certificate of the internal CA: got with a token, renewed with itself
    renewal.py      `certplane-broker renew-certificate`

Start at `command.run`. It is the broker's counterpart of `certplane.agent.init`, and keeps the same rules: whatever a
look can find wrong is found before the token is spent, and a run that stopped anywhere is gone on with by the next one.
"""
