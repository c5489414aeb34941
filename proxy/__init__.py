"""An authenticating reverse proxy for Cumulocity real-time notifications: clients keep no keys."""

__version__ = "0.1.0"
