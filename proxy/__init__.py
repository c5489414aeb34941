"""An authenticating reverse proxy for Cumulocity real-time notifications: clients keep no keys."""

from typing import Final


__version__ = "0.1.0"

USER_AGENT: Final = "c8y-realtime-proxy"
"""What the proxy calls itself where it speaks for itself: always the same, in other versions, too, since a platform
session may be bound to it and outlive an update; and no browser's, since a tenant may forbid Basic to browsers.
"""
