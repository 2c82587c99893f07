"""`certplane-agent init`: from an empty host to an agent that can start.

    command.py    the arguments, what is asked for, and the story as a person sees it
    wanted.py     what was asked for, as values
    presets.py    what each kind of service needs of a certificate; pure
    text.py       agent.yml; pure
    identity.py   as the agent's user: the identity, and what policy gives to it
    sources.py    certificates that another client keeps on this host

Start at `command.run`. Everything that a look can find wrong is found before the token is spent; what a run that was
stopped has made, the next one finds and goes on from.
"""
