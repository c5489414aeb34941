"""What is wrong about the front door when keys are seen together."""

from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from proxy.config.problems import A_KEY, Problem, Told, told
from proxy.config.tree import OWN_SOURCES, Config, identity_of, source_of
from proxy.gate.admission import is_loopback


_ORIGIN: Final = "frontdoor.public_origin"


def frontdoor_contradictions(config: Config) -> Iterator[Told]:
    """What contradicts what, each with the further keys that it follows from."""
    settings = config.frontdoor
    sources = {source_of(each) for each in config.credentials.values()}
    keys = tuple(f"credentials.{name}.source" for name in config.credentials)
    if settings.public_origin is None:
        if settings.model_fields_set:
            yield Problem(_ORIGIN, "expected, since other keys of the front door are set"), "frontdoor"
        elif "session" in sources:
            text = "expected the origin by which browsers reach this proxy, such as https://app.example.com"
            yield told(Problem(_ORIGIN, text), *keys)
        return
    if not sources & OWN_SOURCES:
        text = "expected with a credential whose source is session or cookie: others are not for browsers to act as"
        yield told(Problem(_ORIGIN, text), *keys)
    elif "session" in sources:
        yield from _session_contradictions(config)
    else:
        if identity_of(config) != ("own",):
            text = "expected own, since there is a front door: who logs out there, is known by their session"
            yield told(Problem("gate.identity", text), _ORIGIN, *keys)
        for key in sorted(settings.model_fields_set - _OF_COOKIES):
            text = "expected with source = session only: with cookie, nothing is kept here"
            yield told(Problem(f"frontdoor.{key}", text), *keys)


_OF_COOKIES: Final = frozenset({"public_origin", "platform_paths"})
"""What is said of the front door where the session is the browser's own."""


def _session_contradictions(config: Config) -> Iterator[Told]:
    settings = config.frontdoor
    origin = urlsplit(settings.public_origin or "")
    if origin.scheme != "https" and not is_loopback(origin.hostname or ""):
        text = "expected https: beyond this machine, browsers keep the cookies of a session for nothing else"
        yield (Problem(_ORIGIN, text),)
    if settings.sessions_file is not None and settings.redis_url is not None:
        text = "expected it or redis_url, not both: sessions are kept in one place"
        yield Problem("frontdoor.sessions_file", text), "frontdoor.redis_url"
    if (settings.sessions_file or settings.redis_url) and settings.session_key_file is None:
        text = f"expected a file with a secret, which sessions are sealed with: make one with `{A_KEY}`"
        yield Problem("frontdoor.session_key_file", text), "frontdoor.sessions_file", "frontdoor.redis_url"
    if settings.redis_url is None:
        for key in ("redis_password_file", "redis_ca_file"):
            if getattr(settings, key) is not None:
                yield Problem(f"frontdoor.{key}", "expected with redis_url only"), "frontdoor.redis_url"
    elif settings.redis_ca_file is not None and not settings.redis_url.startswith("rediss:"):
        text = "expected with a redis_url that begins with rediss://, for TLS"
        yield Problem("frontdoor.redis_ca_file", text), "frontdoor.redis_url"
    if settings.idle_seconds > settings.absolute_seconds:
        yield Problem("frontdoor.idle_seconds", "expected no more than absolute_seconds"), "frontdoor.absolute_seconds"
