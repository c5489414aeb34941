"""The texts that keys hold, checked and brought to one spelling. Every error says what was expected, never what was."""

import math
import re
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

from proxy.bayeux.channels import granted
from proxy.credentials.vault import ENTRY_NAME
from proxy.gate import keys
from proxy.gate.admission import is_loopback
from proxy.gate.crossing import is_relayable
from proxy.gate.endpoints import ENDPOINTS, endpoint_of


UNIX: Final = "unix"
"""Stands among networks for whoever comes through a unix socket."""

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_PORTS: Final = range(1, 65536)
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
_CREDENTIAL_NAME: Final = re.compile(r"[a-z0-9_-]{1,64}")
_WHOLE_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,18}")
_URL_PATH: Final = re.compile(r"/(?![/\\])[!-\[\]-~]*")
_PLAIN_PATH: Final = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~!$&'()*+,=:@-]+)+/?")
"""What everybody reads alike: neither encoded characters, nor parameters, empty or dot segments."""

_LOGIN: Final = "/tenant/oauth"
_LOGOUT: Final = "/user/logout"
_REDIS_PATH: Final = re.compile(r"(/[0-9]{0,3})?")
_METHODS: Final = frozenset({"GET", "POST", "PUT", "DELETE"})
_OUR_PATHS: Final = frozenset({"/sign-in", "/sign-out", "/session"})
_COOKIE_NAME: Final = re.compile(r"[!#$%&'*+.^`|~\w-]+", re.ASCII)


def _origin(text: str) -> str:
    """An origin as browsers write it: in lower case, without the scheme's own port."""
    expected = ValueError("expected scheme, host and port alone, such as https://app.example.com")
    parts, port = _split(text, expected)
    host = parts.hostname or ""
    if parts.path not in {"", "/"} or parts.query or parts.fragment or "@" in parts.netloc or text[-1] in "?#":
        raise expected
    written = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{written}" + (f":{port}" if port not in {None, _DEFAULT_PORTS[parts.scheme]} else "")


def _proxy_url(text: str) -> str:
    expected = ValueError("expected the address of an HTTP proxy, such as http://proxy.example.com:3128")
    parts, _ = _split(text, expected)
    if parts.scheme != "http":  # TLS to upstream goes through it; TLS to it, too, would be TLS inside TLS
        raise expected
    return text


def _split(text: str, expected: ValueError) -> tuple[SplitResult, int | None]:
    """The parts of an HTTP URL and its port; raises `expected`, since the stock errors quote the text."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise expected from None
    if port == 0 or parts.scheme not in _DEFAULT_PORTS or not _is_host(parts.hostname or ""):
        raise expected
    return parts, port


def _redis_url(text: str) -> str:
    expected = ValueError("expected the address of a Redis alone, such as redis://redis.example.com:6379/0")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise expected from None
    if parts.scheme not in {"redis", "rediss"} or port == 0 or not _is_host(parts.hostname or ""):
        raise expected
    if parts.password is not None:
        raise ValueError("expected no password within it: put that into frontdoor.redis_password_file")
    if "?" in text or "#" in text or not _REDIS_PATH.fullmatch(parts.path):
        raise expected
    return text


def _url_path(text: str) -> str:
    if not _URL_PATH.fullmatch(text):
        raise ValueError("expected a path on our own origin, such as /app/")
    return text


def _platform_path(text: str) -> str:
    method, _, path = text.partition(" ")
    if method not in _METHODS or not _PLAIN_PATH.fullmatch(path):
        raise ValueError("expected a method and a path, such as GET /inventory/managedObjects")
    if path.rstrip("/") in _OUR_PATHS or endpoint_of(path) is not None:
        raise ValueError("expected a path that this proxy does not serve itself")
    folded = path.lower()
    if folded.startswith(_LOGIN) and text not in {f"GET {_LOGIN}", f"POST {_LOGIN}"}:
        raise ValueError(
            "expected of logging in GET /tenant/oauth and POST /tenant/oauth alone: what else there is gives scripts a "
            "token of the platform"
        )
    if folded.startswith(_LOGOUT) and text != f"POST {_LOGOUT}":
        raise ValueError("expected of logging out POST /user/logout alone")
    return text


def _host(text: str) -> str:
    """A host of a Host header, with or without a port."""
    name, colon, port = text.rpartition(":")
    if not (colon and port.isdecimal() and (":" not in name or name.endswith("]"))):
        name, port = text, ""
    bare = name[1:-1] if name.startswith("[") and name.endswith("]") else name
    if not _is_host(bare) or (port and int(port) not in _PORTS):
        raise ValueError("expected a name or address, with or without a port, such as proxy.example.com")
    return text.lower()


def _listening_host(text: str) -> str:
    if not _is_host(text):
        raise ValueError("expected a name or address without a port, such as 127.0.0.1, :: or localhost")
    return text.lower()


def _is_host(text: str) -> bool:
    if _NAME.fullmatch(text):
        return True
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _network(text: str) -> str:
    if text == UNIX:
        return text
    try:
        return str(ip_network(text))
    except ValueError:
        raise ValueError("expected an address or a network, such as 10.0.0.0/8, or unix for listen.socket") from None


def _cookie_name(text: str) -> str:
    if not is_relayable(text):
        raise ValueError(
            "expected no credential among them, which cross by credentials.default.source alone, and no cookie of this "
            "proxy (__Host-c8y-), which never do"
        )
    if not _COOKIE_NAME.fullmatch(text):
        raise ValueError("expected names of cookies, such as BAYEUX_BROWSER")
    return text


def _header_value(text: str) -> str:
    if not text.isascii() or not text.isprintable():
        raise ValueError("expected printable ASCII, as a header carries it")
    return text


def _path(value: object) -> object:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ValueError("expected a path")
    return value


def _whole_number(value: object) -> int:
    """Also from the text of an environment variable; true and 1_000 are none."""
    if isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value):
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("expected a whole number")  # noqa: TRY004 - pydantic's protocol
    return value


def _number(value: object) -> float:
    """Also from the text of an environment variable; true and nan are none."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError("expected a number")
    return number


def _jwks_url(text: str) -> str:
    expected = ValueError("expected an https URL, such as https://login.example.com/jwks.json, or http on loopback")
    parts, _ = _split(text, expected)
    is_safe = parts.scheme == "https" or is_loopback(parts.hostname or "")
    if not is_safe or "@" in parts.netloc or "#" in text or not text.isascii() or not text.isprintable() or " " in text:
        raise expected
    return text


def _client_name(text: str) -> str:
    if not keys.NAME.fullmatch(text):
        raise ValueError("expected 1 to 64 letters, digits, - and _")
    return text


def _credential_name(text: str) -> str:
    if not _CREDENTIAL_NAME.fullmatch(text):
        raise ValueError("expected a name of 1 to 64 small letters, digits, - and _")
    return text


def _entry_name(text: str) -> str:
    if not ENTRY_NAME.fullmatch(text):
        raise ValueError("expected the name of an entry: 1 to 64 letters, digits, -, _ and .")
    return text


def _stored_key(text: str) -> str:
    if not keys.STORED.fullmatch(text):
        raise ValueError("expected sha256: and 64 hexadecimal digits, as `c8y-realtime-proxy clients add` makes them")
    return text


def _said(text: str) -> str:
    if not text or not text.isprintable():
        raise ValueError("expected a text that can be printed")
    return text


def _endpoint(text: str) -> str:
    if text not in ENDPOINTS:
        raise ValueError(f"expected some of {', '.join(ENDPOINTS)}")
    return text


def _pattern(text: str) -> str:
    if granted(text) is None:
        raise ValueError("expected patterns of channels, such as /measurements/*, /measurements/{id} or /alarms/**")
    return text


Origin = Annotated[str, AfterValidator(_origin)]
ProxyUrl = Annotated[str, AfterValidator(_proxy_url)]
Host = Annotated[str, AfterValidator(_host)]
ListeningHost = Annotated[str, AfterValidator(_listening_host)]
Network = Annotated[str, AfterValidator(_network)]
RedisUrl = Annotated[str, AfterValidator(_redis_url)]
UrlPath = Annotated[str, AfterValidator(_url_path)]
PlatformPath = Annotated[str, AfterValidator(_platform_path)]
CookieName = Annotated[str, AfterValidator(_cookie_name)]
HeaderValue = Annotated[str, AfterValidator(_header_value)]
JwksUrl = Annotated[str, AfterValidator(_jwks_url)]
ClientName = Annotated[str, AfterValidator(_client_name)]
CredentialName = Annotated[str, AfterValidator(_credential_name)]
EntryName = Annotated[str, AfterValidator(_entry_name)]
StoredKey = Annotated[str, AfterValidator(_stored_key)]
Said = Annotated[str, AfterValidator(_said)]
Endpoint = Annotated[str, AfterValidator(_endpoint), Field(json_schema_extra={"enum": list(ENDPOINTS)})]
Pattern = Annotated[str, AfterValidator(_pattern)]
FilePath = Annotated[Path, BeforeValidator(_path)]
WholeNumber = Annotated[int, BeforeValidator(_whole_number)]
Number = Annotated[float, BeforeValidator(_number)]
# Bounds stand in front of the validator, where pydantic finds them for the schema.
Port = Annotated[int, Field(ge=0, le=65535), BeforeValidator(_whole_number)]
Seconds = Annotated[float, Field(gt=0), BeforeValidator(_number)]
Count = Annotated[int, Field(gt=0, lt=2**31), BeforeValidator(_whole_number)]
Bytes = Annotated[int, Field(gt=0, lt=2**31), BeforeValidator(_whole_number)]
