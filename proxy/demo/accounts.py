"""Who the simulated platform knows from the start: a tenant's users, a few tokens, a few browser sessions."""

import base64
import hmac
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field


def same(presented: object, expected: str) -> bool:
    """Whether somebody presented exactly this text."""
    return isinstance(presented, str) and hmac.compare_digest(presented.encode(), expected.encode())


def basic(tenant: str, user: str, password: str) -> str:
    """What stands behind "Basic " in a header, and alone in `token`: base64 of UTF-8 tenant/user:password."""
    return base64.b64encode(f"{tenant}/{user}:{password}".encode()).decode()


class Unauthorized(Exception):
    """The credential is not admitted; `error` and `message` are what the platform's 401 says in its body.

    The documents name the members (`error`, `message`, `info`, `details`) and "security/Unauthorized"; the texts are
    those that clients of the platform match, or that their users quoted.
    """

    def __init__(
        self, message: str = "Invalid credentials! : Bad credentials", *, error: str = "security/Unauthorized"
    ) -> None:
        super().__init__(message)
        self.error = error
        self.message = message


@dataclass(frozen=True, slots=True)
class User:
    """Somebody of one tenant: a person, a device or a service."""

    tenant: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One user's ways to log in. `totp` is the base32 secret of the second factor; `needs_totp_setup` is a user who
    has to set one up and has not.
    """

    tenant: str
    user: str
    password: str = field(repr=False)
    totp: str | None = field(default=None, repr=False)
    needs_totp_setup: bool = False

    @property
    def owner(self) -> User:
        return User(self.tenant, self.user)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounts:
    """Every credential that the simulator admits from the start, and the rules by which it judges one.

    `sessions` maps the value of an `authorization` cookie to the XSRF token that belongs to it.
    `tfa` is asked for beside user and password only: a token was issued after the second factor. `totp` and
    `needs_totp_setup` are those of the first user, `others` more users, also of other tenants.
    """

    tenant: str
    user: str
    password: str = field(repr=False)
    tfa: str | None = field(default=None, repr=False)
    tokens: Collection[str] = field(default=(), repr=False)
    sessions: Mapping[str, str] = field(default_factory=dict, repr=False)
    totp: str | None = field(default=None, repr=False)
    needs_totp_setup: bool = False
    others: Collection[Account] = ()

    @property
    def basic(self) -> str:
        """The first user's Basic credential."""
        return basic(self.tenant, self.user, self.password)

    @property
    def owner(self) -> User:
        """The first user, to whom the tokens and sessions given from the start belong."""
        return User(self.tenant, self.user)

    def __iter__(self) -> Iterator[Account]:
        yield Account(
            tenant=self.tenant,
            user=self.user,
            password=self.password,
            totp=self.totp,
            needs_totp_setup=self.needs_totp_setup,
        )
        yield from self.others

    def of_basic(self, value: object, *, tfa: object) -> User:
        """Whose user and password these are. Raises Unauthorized, also where a second factor is missing.

        One-time codes are never for Basic: their owners have to log in.
        """
        for account in self:
            if same(value, basic(account.tenant, account.user, account.password)):
                require_second_factor(account, given=False)
                if account.owner == self.owner and self.tfa is not None and not same(tfa, self.tfa):
                    raise Unauthorized("Invalid credentials! : TFA code required")
                return account.owner
        raise Unauthorized

    def of_token(self, token: object) -> User | None:
        return self.owner if any(same(token, known) for known in self.tokens) else None

    def of_session(self, cookie: object, xsrf_token: object) -> User | None:
        expected = self.sessions.get(cookie) if isinstance(cookie, str) else None
        return self.owner if expected is not None and same(xsrf_token, expected) else None


def require_second_factor(account: Account, *, given: bool) -> None:
    """Raise Unauthorized if a one-time code is needed and none was given, or if there is nothing to make one with."""
    if account.needs_totp_setup:
        raise Unauthorized("Invalid credentials! : TFA TOTP setup required")
    if account.totp is not None and not given:
        raise Unauthorized("Invalid credentials! : TFA TOTP code required")
