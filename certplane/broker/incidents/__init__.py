"""Incidents: a CA wants many certificates replaced at once, and that is one visible thing with a deadline and progress.

| module | owns |
|---|---|
| `model` | the values: an incident, its certificates; start here |
| `ports` | what it needs from the store, and from whoever runs rollouts |
| `detect` | from windows that CAs have moved to incidents, purely |
| `progress` | from what the database and the fleet say of its certificates to how far an incident is, purely |
| `watch` | looks, and makes what was found durable; one broker does |
| `known` | the open ones in memory, at every broker |
"""
