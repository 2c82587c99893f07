"""What delivers notifications: `Notifier`s, a module each, loaded where broker.yml has one of its kind.

`webhook` POSTs to a URL, `mail` hands over to a mail server, `apprise_service` uses the extra `apprise`; `making` makes
them from the configuration. Their sections of broker.yml are in `certplane.broker.notify.receivers`.
"""
