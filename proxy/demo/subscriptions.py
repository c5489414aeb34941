"""A microservice's subscriptions: for each tenant that subscribed to it, a service user of its own.

The platform documents `GET /application/currentApplication/subscriptions` for the application's bootstrap user, who
gets `{"users":[{"tenant","name","password"}]}` of the tenants subscribed at that moment.
"""

import secrets

from proxy.demo.accounts import User, basic, same


class Subscriptions:
    """Which tenants are subscribed now. Tests subscribe, unsubscribe and rotate at any time."""

    def __init__(self, *, tenant: str, user: str = "servicebootstrap_proxy") -> None:
        self.tenant = tenant
        self.user = user
        self.password = secrets.token_urlsafe(24)
        self._passwords: dict[User, str] = {}

    @property
    def basic(self) -> str:
        """The bootstrap user's Basic credential: good for the list of subscriptions, and for nothing else."""
        return basic(self.tenant, self.user, self.password)

    def subscribe(self, tenant: str, password: str | None = None, *, user: str = "service_proxy") -> str:
        """Subscribe a tenant, or rotate its service user's password if it is subscribed; returns the password."""
        chosen = secrets.token_urlsafe(24) if password is None else password
        self._passwords[User(tenant, user)] = chosen
        return chosen

    def unsubscribe(self, tenant: str) -> None:
        """Forget a tenant's service user: from now on its credential is wrong."""
        self._passwords = {user: password for user, password in self._passwords.items() if user.tenant != tenant}

    def of_basic(self, value: object) -> User | None:
        """Whose credential this is, None if nobody's who is subscribed."""
        return next(
            (
                user
                for user, password in self._passwords.items()
                if same(value, basic(user.tenant, user.name, password))
            ),
            None,
        )

    def listed(self) -> list[dict[str, str]]:
        """The users that the bootstrap user is told of."""
        return [
            {"tenant": user.tenant, "name": user.name, "password": password}
            for user, password in self._passwords.items()
        ]
