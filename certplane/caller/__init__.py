"""How a program calls a broker: the machinery below `certplane.client`, and what certplanectl has in common with it.

Private: names, modules and arguments here may change in any release. Programs import `certplane.client`.

- `settings`: client.yml, and the sections that ctl.yml has too.
- `values`: what a broker says, as frozen values; `convert` makes them of messages.
- `credentials`, `connection`: the channel, whose identity and CAs are read again when their files change; a broker that
  is unwell is left for another one. `unreachable` says why there is no connection.
- `patience`: when a call that failed is repeated (pure). `calls`: the calls. `ordering`: from a key to a certificate.
- `news`: the stream that says what becomes of certificates.
- `schedule` (pure), `keeping`, `folder`, `serving`: one certificate kept fresh, its files, its TLS context.

Start with `connection`, then `keeping`.
"""
