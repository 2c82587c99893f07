"""When each certificate should be renewed: what the CA advises (ARI, RFC 9773), and what operators ask for.

| module | owns |
|---|---|
| `model` | the values: plans, certificates in force, what a CA says; start here |
| `ports` | what it needs from the store and the CAs |
| `planning` | from a CA's answer to a plan, purely |
| `planner` | asks the CAs when it is time, and makes their answers durable |
| `revocations` | hears what other programs have revoked, so that the holders are told |
| `plans` | what is planned, in memory for each answer, and who hears of a change |
"""
