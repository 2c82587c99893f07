"""Tells people, where they are, of what is wrong with certificates: a webhook, mail, or what the extra `apprise` knows.

One broker of a database does it for all (role `notifications`). What it looks at is the fleet's health, as everything
else that shows it; what it says is one message for each cause, however many hosts have it, one when that gets worse,
one as a reminder, one when it is over, and a digest each week.

    fleet index --rules.Gathering--> troubles --planning.plan--> messages + what was told --one transaction--> outbox
    outbox --delivery--> webhook | mail | apprise_notifier

| module | owns |
|---|---|
| `model` | the values: what is affected, a trouble, a message, what was told |
| `settings` | the section `notifications` of broker.yml; the adapters' own sections are beside them |
| `rules` | which certificates a notifier hears of, grouped by cause. Pure |
| `planning` | what is to be said now, by what was said before. Pure |
| `text` | a message in words, as a JSON document, and in an operator's template. Pure |
| `ports` | the outbox, and what delivers a message |
"""
