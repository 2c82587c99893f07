"""The brokers that share a database, and this one's place among them (design-brokers, parts 1 and 2).

| module | owns |
|---|---|
| `model` | `Member`: what a broker says of itself; `Renewal`, what the database says to it |
| `ports` | `MemberStore` and `RoleStore`, the rows; `Lease`, what issuance asks before each step; `RoleLease` |
| `membership` | keeping the lease, and saying when it is lost |
| `known` | the other brokers, from memory |
| `comparison`, `drift` | in what brokers differ that should be alike, and saying so |
| `view` | what operators see of all brokers |
| `roles` | what is done once for all brokers, by one of them |
| `skew` | this machine's clock beside the database's |
"""
