"""End to end: real Bayeux servers as upstream, real clients, a real browser, and the command as users start it.

Nothing here looks inside the proxy. Its clients hold no stored secret; a tap between them and the proxy keeps every
byte that goes down, and after each test these bytes, the log and the metrics are searched for the secrets.
"""
