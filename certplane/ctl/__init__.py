"""certplanectl: what operators ask of the broker, from anywhere that has an operator's identity.

    arguments/      what may be typed: each command with its options and examples
    commands/       what each does
    show/           what people see of the broker's messages
    session.py      what a command works with: context, client, output, a person to ask
    client.py       the broker's operator calls; connection.py is the way to it, over several brokers
    output.py       formats, widths, colours
    filters.py      what is typed of filters, as messages
    settings.py     ctl.yml; contexts.py, which of its fleets is meant

A command begins in `arguments`, which says where it is done.
"""
