"""The way to upstream: its name, a connection, TLS, and what time it is there."""

import asyncio
import os
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from ipaddress import ip_address
from typing import Final, TypeVar
from urllib.parse import urlsplit

from cryptography import x509

from proxy import USER_AGENT
from proxy.config import Config
from proxy.doctor.findings import OF_UPSTREAM, Finding, Step, Tell, Verdict, listed, needs
from proxy.gate.admission import is_loopback
from proxy.tls import Trust, trusting
from proxy.upstream.dialling import DialFailed, Dialler, Line


SOON_SECONDS: Final = 14 * 86_400.0
"""How long before its end a certificate is warned of."""

_ODD_SECONDS: Final = 30.0
_WRONG_SECONDS: Final = 300.0
"""How far two clocks may be apart: beyond the first, one-time codes are denied, and tokens beyond the second."""

_PORTS: Final = {"http": 80, "https": 443}
_OPEN_TO_ALL: Final = "/tenant/loginOptions"
"""What upstream tells everybody; what it answers does not matter."""

Opened = TypeVar("Opened")

_NOT_YET: Final = 9  # X509_V_ERR_CERT_NOT_YET_VALID
_EXPIRED: Final = 10  # X509_V_ERR_CERT_HAS_EXPIRED
_OTHER_NAMES: Final = frozenset({62, 64})  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
_UNKNOWN_ISSUERS: Final = frozenset({2, 18, 19, 20, 21})
"""Of OpenSSL: the issuer is not there, or is the certificate itself, or is there and not trusted."""

_NO_TLS: Final = frozenset(
    {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"}
)
"""What OpenSSL makes of bytes that are none of TLS."""

_MOST_NAMES: Final = 5


class Network:
    """The way to the upstream of a configuration. `clock` gives Unix time."""

    def __init__(self, config: Config, clock: Callable[[], float] = time.time) -> None:
        settings = config.upstream
        url = urlsplit(settings.url)
        self._settings = settings
        self._limit = config.limits.head_bytes
        self._seconds = settings.open_timeout_seconds
        self._clock = clock
        self._scheme, self._host = url.scheme, url.hostname or ""
        self._netloc = url.netloc
        self._port = url.port or _PORTS[url.scheme]
        self._trust: Trust = trusting(settings.ca_file, key="upstream.ca_file", on_load=lambda _: None)
        self.ahead = 0.0
        """By how many seconds upstream's clock is ahead of this machine's, once that is known."""

    async def examine(self, tell: Tell) -> Step | None:
        """Go the way step by step; returns the one that upstream cannot be asked after, or None."""
        steps = {"DNS": self._names, "TCP": self._connection, "TLS": self._tls, "clock": self._time}
        missing: Step | None = None
        for step in OF_UPSTREAM:
            if missing is not None:
                tell(needs(step, missing))
                continue
            finding, is_passable = await steps[step]()
            tell(finding)
            if not is_passable:
                missing = step
        return missing

    # DNS --------------------------------------------------------------------------------------------------------------

    async def _names(self) -> tuple[Finding, bool]:
        host, port, key = self._first_hop()
        if _is_address(host):
            return _ok("DNS", f"{key} has an address, {host}, so there is no name to look up")
        remedy = f"Check the name in {key}, and the name servers of this machine"
        try:
            async with asyncio.timeout(self._seconds):
                addresses = listed(await _addresses(host, port))
        except TimeoutError:
            return _failed("DNS", f"The name {host} did not resolve within {self._seconds:g} s", remedy)
        except OSError as error:  # socket.gaierror among them
            why = "name servers do not answer" if error.errno == socket.EAI_AGAIN else "no name server knows it"
            return _failed("DNS", f"The name {host} does not resolve: {why}", remedy)
        except UnicodeError:
            return _failed("DNS", f"The name {host} does not resolve: it is none", remedy)
        if self._settings.proxy_url is None:
            return _ok("DNS", f"{host} is at {addresses}")
        return _ok("DNS", f"{host}, the HTTP proxy, is at {addresses}; the name of upstream is looked up behind it")

    def _first_hop(self) -> tuple[str, int, str]:
        """Whom this machine connects to: host, port, and the key that says so."""
        if self._settings.proxy_url is None:
            return self._host, self._port, "upstream.url"
        proxy = urlsplit(self._settings.proxy_url)
        return proxy.hostname or "", proxy.port or _PORTS["http"], "upstream.proxy_url"

    # TCP --------------------------------------------------------------------------------------------------------------

    async def _connection(self) -> tuple[Finding, bool]:
        upstream = _place(self._host, self._port)
        begun = time.monotonic()
        try:
            transport = await self._within(self._dialler("http").connect())
        except DialFailed as problem:  # only the HTTP proxy has spoken so far
            remedy = "Check user and password in upstream.proxy_url, and whether it lets through to this upstream"
            return _failed("TCP", f"{problem}, to {upstream}", remedy)
        except OSError as error:
            return self._not_connected(error)
        took = f"in {(time.monotonic() - begun) * 1000:.0f} ms"
        host, port, *_ = transport.get_extra_info("peername") or self._first_hop()
        transport.abort()
        if self._settings.proxy_url is None:
            return _ok("TCP", f"Connected to {_place(host, port)} {took}")
        return _ok("TCP", f"Connected by the HTTP proxy at {_place(host, port)} to {upstream} {took}")

    def _not_connected(self, error: OSError) -> tuple[Finding, bool]:
        host, port, key = self._first_hop()
        place = _place(host, port)
        if isinstance(error, ConnectionRefusedError):
            return _failed("TCP", f"Nothing listens at {place}: the connection was refused", f"Check the port in {key}")
        if isinstance(error, TimeoutError):
            remedy = f"Check the port in {key}, and whether a firewall stands on the way"
            return _failed("TCP", f"{place} did not answer within {self._seconds:g} s", remedy)
        remedy = f"Check {key}, and the network of this machine"
        return _failed("TCP", f"{place} cannot be reached: {_strerror(error)}", remedy)

    # TLS --------------------------------------------------------------------------------------------------------------

    async def _tls(self) -> tuple[Finding, bool]:
        if self._scheme == "http":
            return self._without_tls(), True
        try:
            transport = await self._within(self._dialler("https").connect())
        except ssl.SSLCertVerificationError as error:
            return await self._not_trusted(error)
        except ssl.SSLError as error:
            return self._not_agreed(error)
        except (DialFailed, OSError) as problem:
            text = "ended the connection within the TLS handshake"
            if isinstance(problem, TimeoutError):
                text = f"did not finish the TLS handshake within {self._seconds:g} s"
            return _failed("TLS", f"Upstream {text}", _ASK_IT)
        connection = transport.get_extra_info("ssl_object")
        version, certificate = connection.version(), connection.getpeercert()
        transport.abort()
        until = float(ssl.cert_time_to_seconds(certificate["notAfter"]))
        sentence = (
            f"{version}; upstream's certificate was verified by {self._authorities}, and is good until {_day(until)}"
        )
        if until - self._clock() < SOON_SECONDS:
            return _warning("TLS", sentence, "Have it renewed before that day"), True
        return _ok("TLS", sentence)

    def _without_tls(self) -> Finding:
        if is_loopback(self._host):
            return Finding("TLS", Verdict.SKIPPED, "upstream.url is http, and on this machine")
        remedy = "Write https there, if upstream speaks it"
        return _warning("TLS", "upstream.url is http, so who is on the way reads the credentials", remedy)

    async def _not_trusted(self, error: ssl.SSLCertVerificationError) -> tuple[Finding, bool]:
        shown = await self._shown()
        code = error.verify_code
        if code in _OTHER_NAMES:
            names = _names_in(shown)
            sentence = (
                f"Upstream's certificate is for {listed(names) if names else 'another name'}, not for {self._host}"
            )
            return _failed("TLS", sentence, "Write a name that it is for into upstream.url")
        if code in {_EXPIRED, _NOT_YET}:
            told = "expired on" if code == _EXPIRED else "is not good before"
            when = "" if shown is None else _day(_limit_of(shown, is_end=code == _EXPIRED))
            sentence = f"Upstream's certificate {told} {when or 'another day'}, and this machine's clock says "
            sentence += _day(self._clock())
            return _failed("TLS", sentence, "Have upstream's certificate renewed, or set this machine's clock")
        if code in _UNKNOWN_ISSUERS:
            sentence = "Upstream's certificate is issued by an authority that is not"
            if self._settings.ca_file is None:
                remedy = "Set upstream.ca_file to a file with that authority, in PEM"
                return _failed("TLS", f"{sentence} among those of the system", remedy)
            remedy = "Put that authority into the file, or leave the key out for those of the system"
            return _failed("TLS", f"{sentence} in upstream.ca_file", remedy)
        sentence = f"Upstream's certificate is not one to trust, says OpenSSL with number {code}"
        return _failed("TLS", sentence, "Check upstream.url and upstream.ca_file")

    def _not_agreed(self, error: ssl.SSLError) -> tuple[Finding, bool]:
        place = _place(self._host, self._port)
        if error.reason in _NO_TLS:
            remedy = "Write the port that speaks TLS into upstream.url, or http in place of https"
            return _failed("TLS", f"What listens at {place} speaks no TLS", remedy)
        return _failed("TLS", f"The TLS handshake with {place} failed: {error.reason}", _ASK_IT)

    async def _shown(self) -> x509.Certificate | None:
        """The certificate that upstream shows, whoever issued it: to tell what is wrong with it. Nothing is sent."""
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with suppress(DialFailed, OSError, ValueError):
            transport = await self._within(self._dialler("https", lambda: context).connect())
            written = transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
            transport.abort()
            return x509.load_der_x509_certificate(written or b"")
        return None

    @property
    def _authorities(self) -> str:
        return "the authorities of the system" if self._settings.ca_file is None else "upstream.ca_file"

    # Clock ------------------------------------------------------------------------------------------------------------

    async def _time(self) -> tuple[Finding, bool]:
        asked = {"Host": self._netloc, "User-Agent": USER_AGENT, "Accept": "application/json", "Connection": "close"}
        begun = self._clock()
        try:
            line = await self._within(self._dialler(self._scheme).ask(_OPEN_TO_ALL, asked.items()))
        except TimeoutError:
            return _failed("clock", f"Upstream did not answer a plain request within {self._seconds:g} s", _ASK_IT)
        except (DialFailed, OSError) as problem:
            why = str(problem) if isinstance(problem, DialFailed) else _strerror(problem)
            remedy = "Check that upstream.url is the tenant's"
            if self._scheme == "http":
                remedy += ", and write https there if TLS is spoken at this port"
            return _failed("clock", f"Upstream did not answer a plain request: {why}", remedy)
        line.transport.abort()
        there = _date_of(line)
        if there is None:
            return Finding("clock", Verdict.SKIPPED, "Upstream's answer does not say what time it is there"), True
        self.ahead = there - (begun + self._clock()) / 2
        apart = abs(self.ahead)
        if apart <= _ODD_SECONDS:
            return _ok("clock", f"This machine's clock and upstream's agree to within {max(1, round(apart))} s")
        sentence = f"This machine's clock is {_span(apart)} {'behind' if self.ahead > 0 else 'ahead of'} upstream's"
        remedy = "Set it, by NTP for instance: one-time codes and tokens go by it"
        verdict = Verdict.FAILED if apart > _WRONG_SECONDS else Verdict.WARNING
        return Finding("clock", verdict, sentence, remedy), True

    # ------------------------------------------------------------------------------------------------------------------

    def _dialler(self, scheme: str, trust: Trust | None = None) -> Dialler:
        """What opens connections there, with or without TLS."""
        url = f"{scheme}://{_place(self._host, self._port)}"
        return Dialler(url, tls=trust or self._trust, proxy_url=self._settings.proxy_url, max_head_bytes=self._limit)

    async def _within(self, opening: Awaitable[Opened]) -> Opened:
        async with asyncio.timeout(self._seconds):
            return await opening


_ASK_IT: Final = "Check that upstream.url is the tenant's, and what stands on the way there"


async def _addresses(host: str, port: int) -> list[str]:
    """The addresses of a name, each once. Raises OSError and UnicodeError.

    A thread of the event loop would have the process wait for its end, which name servers that are silent may delay.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[str]] = loop.create_future()

    def look_up() -> None:
        try:
            addresses = [str(address[0]) for *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        except (OSError, UnicodeError) as problem:
            settle: Callable[[], None] = partial(found.set_exception, problem)
        else:
            settle = partial(found.set_result, list(dict.fromkeys(addresses)))
        with suppress(RuntimeError):  # the loop is closed by now
            loop.call_soon_threadsafe(lambda: None if found.done() else settle())

    threading.Thread(target=look_up, daemon=True).start()
    return await found


def _ok(step: Step, sentence: str) -> tuple[Finding, bool]:
    return Finding(step, Verdict.OK, sentence), True


def _failed(step: Step, sentence: str, remedy: str) -> tuple[Finding, bool]:
    return Finding(step, Verdict.FAILED, sentence, remedy), False


def _warning(step: Step, sentence: str, remedy: str) -> Finding:
    return Finding(step, Verdict.WARNING, sentence, remedy)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _place(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _strerror(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else type(error).__name__


def _day(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d}"


def _span(seconds: float) -> str:
    """A time as people say it."""
    for unit, name in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"


def _names_in(certificate: x509.Certificate | None) -> list[str]:
    """Some of the names that a certificate is for, as far as they are names: it is nobody's word yet."""
    if certificate is None:
        return []
    try:
        others = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    names = [*others.get_values_for_type(x509.DNSName), *map(str, others.get_values_for_type(x509.IPAddress))]
    return [name for name in names if name.isascii() and name.isprintable() and len(name) < 254][:_MOST_NAMES]  # noqa: PLR2004 - the longest name in DNS


def _limit_of(certificate: x509.Certificate, *, is_end: bool) -> float:
    return (certificate.not_valid_after_utc if is_end else certificate.not_valid_before_utc).timestamp()


def _date_of(line: Line) -> float | None:
    """What time it is where an answer comes from."""
    try:
        return parsedate_to_datetime(line.answer.value("date") or "").timestamp()
    except ValueError:
        return None
