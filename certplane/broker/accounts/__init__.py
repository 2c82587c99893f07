"""The ACME accounts that brokers share, and their keys in the database (docs/adr/0038).

| module | owns |
|---|---|
| `model` | `Account`: what the database knows of one |
| `ports` | `AccountRows`, the rows |
| `seal` | sealing a key with the secret of `store.seal_secret`, and unsealing it |
| `in_use` | in the broker: which keys are in use, the refusal of a second account, and news of other brokers |
"""
