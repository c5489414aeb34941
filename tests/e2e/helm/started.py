"""What the chart configures, started for real: pods as contained processes, the Ingress as nginx, a Redis, and the
platform.

There is no cluster here. What Kubernetes itself does is done by hand, as far as it goes: volumes are written, probes
are asked, endpoints are those whose pods are there. Nobody enforces the NetworkPolicy, places pods, or scales.
"""

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import pytest
import yaml

from proxy.config import PREFIX
from proxy.gate.crossing import COOKIE_BYTES
from tests.demo.authority import Authority
from tests.e2e.conformance.ways import nginx
from tests.e2e.frontdoor import APPLICATION, FrontDoor
from tests.e2e.origin import TENANT, Origin, secrets_of
from tests.e2e.people import Tab, gathered
from tests.e2e.programs import EndedEarly, Program
from tests.e2e.sidecar.containers import Mount, User, contained
from tests.e2e.stage import COMMAND, Browser, Evidence
from tests.frontdoor.redis import running_redis
from tests.ports import unused_ports

from .chart import COOKIE, REPLICAS, Rendered, merged, rendered, selected_by


pytestmark = [pytest.mark.parametrize("origin", ["simulator"], indirect=True), pytest.mark.timeout(90)]

HOST: Final = "door.example.test"
CHANNEL: Final = "/measurements/4711"
STARTS_WITHIN_SECONDS: Final = 20
ADDRESSES: Final = ("127.0.0.2", "127.0.0.3")
"""Those of pods: each has loopback addresses of its own here, and the same ports on them."""

Contents = Mapping[str, Mapping[str, str]]
"""What the Secrets and ConfigMaps hold that the chart only names: entries by the names of both."""

_INGRESS = """
    map $http_upgrade $upgrading {{ default upgrade; "" ""; }}
    upstream endpoints {{ {endpoints} }}
    server {{
        listen 127.0.0.1:{port} ssl;
        server_name {host};
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        proxy_http_version 1.1;
        proxy_set_header Host $http_host;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection $upgrading;
        proxy_set_header X-Forwarded-For $remote_addr;
        proxy_set_header X-Forwarded-Proto $scheme;
        {annotated}
        {application}
        {locations}
    }}
"""
"""As ingress-nginx writes it, in short."""

_ANNOTATED: Final = {
    "nginx.ingress.kubernetes.io/proxy-buffering": "proxy_buffering {};",
    "nginx.ingress.kubernetes.io/proxy-buffer-size": "proxy_buffer_size {0}; proxy_buffers 4 {0};",
    "nginx.ingress.kubernetes.io/proxy-read-timeout": "proxy_read_timeout {}s;",
    "nginx.ingress.kubernetes.io/proxy-send-timeout": "proxy_send_timeout {}s;",
}


@dataclass
class Pod:
    """A pod of the chart as a process, at an address of its own."""

    door: Rendered
    address: str
    program: Program

    async def probed(self, name: str) -> bool:
        """Whether a probe succeeds, as the kubelet asks it."""
        asked = self.door.container[f"{name}Probe"]["httpGet"]
        try:
            return (await self.got(asked["port"], asked["path"]))[0] == 200
        except aiohttp.ClientConnectionError:
            return False

    async def got(self, port: str, path: str) -> tuple[int, str]:
        """The status and the text that are served on a port, by its name."""
        async with aiohttp.ClientSession() as session:
            answer = await session.get(f"http://{self.address}:{self.door.ports[port]}{path}")
            return answer.status, await answer.text()

    async def scraped(self) -> str:
        """Its metrics, as Prometheus gets them by what the ServiceMonitor says."""
        monitor = self.door.the("ServiceMonitor")["spec"]
        [endpoint] = monitor["endpoints"]
        [service] = [
            each
            for each in self.door.all("Service")
            if selected_by(monitor["selector"]["matchLabels"], each["metadata"]["labels"])
        ]
        [port] = [each["targetPort"] for each in service["spec"]["ports"] if each["name"] == endpoint["port"]]
        status, text = await self.got(port, endpoint["path"])
        assert status == 200
        return text

    async def sockets(self) -> int:
        [line] = [
            line
            for line in (await self.scraped()).splitlines()
            if line.startswith('c8y_realtime_proxy_connections{transport="websocket"}')
        ]
        return int(float(line.split()[-1]))

    async def starts(self) -> None:
        """Wait for its startup probe to succeed. Raises EndedEarly."""
        async with asyncio.timeout(STARTS_WITHIN_SECONDS):
            while not await self.probed("startup"):
                if self.program.process.returncode is not None:
                    await self.ended()
                    raise EndedEarly(self.program.command, bytes(self.program.stderr))

    def told_to_end(self) -> None:
        self.program.process.send_signal(signal.SIGTERM)

    async def ended(self) -> int:
        """The exit code, within the time that the pod is given."""
        return await self.program.wait(seconds=self.door.pod["spec"]["terminationGracePeriodSeconds"])


async def test_a_session_goes_on_at_the_other_replica_when_one_is_told_to_end(
    origin: Origin, authority: Authority, browser: Browser, evidence: Evidence, tmp_path: Path
) -> None:
    contents = new_contents(authority, tmp_path, evidence)
    password = contents["front-door-redis"]["password"]
    with running_redis(tmp_path, password=password, tls=authority.server_files(tmp_path)) as redis:
        values = merged(
            REPLICAS,
            {
                "redis": {"url": redis.url, "ca": {"secret": "authorities"}},
                "config": {"frontdoor": {"tenant": TENANT}},
                "serviceMonitor": {"enabled": True},
            },
        )
        async with opened(values, contents, origin, authority, tmp_path, evidence) as (door, pods, port):
            assert door.the("Deployment")["spec"]["replicas"] == len(pods)
            async with gathered(browser.endpoint) as people:
                at_home = FrontDoor(f"https://{HOST}:{port}", "", {}, origin, (), people, evidence, tmp_path)
                home = await at_home.signed_in(at_home.new_account("ada"))
                tab = await listening(home, at_home.url)
                await origin.publish(CHANNEL, 0, 1)
                await tab.client.receive(CHANNEL, 0, 1)

                [leaving] = [pod for pod in pods if await pod.sockets()]
                [staying] = [pod for pod in pods if pod is not leaving]
                leaving.told_to_end()
                assert await leaving.ended() == 0
                await tab.client.goes_on(lambda number: origin.publish(CHANNEL, number, 1), 1)
                assert await staying.sockets() == 1
                assert await home.evaluate("fetch('/session').then(({ status }) => status)") == 200
                assert origin.simulator.logins.asked == 1


async def test_a_pod_that_was_told_to_end_is_not_ready_but_still_serves(
    origin: Origin, authority: Authority, evidence: Evidence, tmp_path: Path
) -> None:
    contents = new_contents(authority, tmp_path, evidence)
    values = merged(COOKIE, {"config": {"drain": {"accept_seconds": 60}}})
    async with opened(values, contents, origin, authority, tmp_path, evidence) as (_, (pod, other), port):
        pod.told_to_end()
        async with asyncio.timeout(STARTS_WITHIN_SECONDS):
            while await pod.probed("readiness"):
                pass
        assert await pod.probed("liveness")
        assert (await pod.got("http", "/tenant/loginOptions"))[0] == 200
        await pod.program.kill()
        assert await asked(port, "/tenant/loginOptions") == 200
        assert await other.probed("readiness")
        await other.program.kill()  # it would take a minute to leave, too


async def test_with_cookie_the_ingress_leads_to_the_platforms_login_and_to_no_page_of_ours(
    origin: Origin, authority: Authority, evidence: Evidence, tmp_path: Path
) -> None:
    contents = new_contents(authority, tmp_path, evidence)
    async with opened(COOKIE, contents, origin, authority, tmp_path, evidence) as (_, _, port):
        assert await asked(port, "/tenant/loginOptions") == 200
        assert await asked(port, "/user/currentUser") == 401
        assert await asked(port, "/notification/realtime") == 405
        assert await asked(port, "/sign-in") == 404


async def test_a_login_whose_token_is_as_long_as_a_cookie_may_be_gets_through_the_ingress(
    origin: Origin, authority: Authority, evidence: Evidence, tmp_path: Path
) -> None:
    contents = new_contents(authority, tmp_path, evidence)
    account = origin.new_account("ada" * 810)  # a token tells whose it is
    evidence.secrets += secrets_of(account)
    fields = {"grant_type": "PASSWORD", "username": account.user, "password": account.password}
    async with opened(COOKIE, contents, origin, authority, tmp_path, evidence) as (_, _, port):
        headers = {"Host": f"{HOST}:{port}"}
        async with aiohttp.ClientSession(f"https://127.0.0.1:{port}", headers=headers) as session:
            answer = await session.post("/tenant/oauth", data=fields, ssl=False)
            assert answer.status == 200
            [line] = [line for line in answer.headers.getall("Set-Cookie") if line.startswith("__Host-authorization=")]
            assert 4000 < len(line) <= COOKIE_BYTES
            browser = {name: morsel.value for name, morsel in answer.cookies.items()}
            shown = {
                "Cookie": "; ".join(f"{name}={value}" for name, value in browser.items()),
                "X-XSRF-TOKEN": browser["XSRF-TOKEN"],
            }
            told = await session.get("/user/currentUser", headers=shown, ssl=False)
            assert (told.status, (await told.json())["userName"]) == (200, account.user)


def new_contents(authority: Authority, folder: Path, evidence: Evidence) -> Contents:
    """What an operator makes before the chart is installed."""
    made = {name: secrets.token_urlsafe(32) for name in ("client-id-key", "session-key", "password")}
    evidence.secrets += [secret.encode() for secret in made.values()]
    keys = {name: f"{made[name]}\n" for name in ("client-id-key", "session-key")}
    return {
        "front-door-keys": keys,
        "front-door-redis": {"password": made["password"]},
        "authorities": {"ca.crt": authority.ca_file(folder).read_text(encoding="utf-8")},
    }


@asynccontextmanager
async def opened(
    values: Mapping[str, Any],
    contents: Contents,
    origin: Origin,
    authority: Authority,
    folder: Path,
    evidence: Evidence,
) -> AsyncIterator[tuple[Rendered, list[Pod], int]]:
    """The front door of a platform, with as many pods as there are to be: those, and the port of the ingress."""
    async with AsyncExitStack() as stack:
        values = merged(
            values,
            {
                "config": {
                    "upstream": {"url": origin.url, "ca_file": "/run/authorities/ca.crt"},
                    "listen": {"port": stack.enter_context(unused_ports())},
                    "admin": {"port": stack.enter_context(unused_ports())},
                    "gate": {"trusted_proxies": ["127.0.0.1"]},
                    "drain": {"spread_seconds": 0.1, "accept_seconds": 0.5},
                },
                "ingress": {"host": HOST},
                "extraVolumes": [{"name": "authorities", "secret": {"secretName": "authorities"}}],
                "extraVolumeMounts": [{"name": "authorities", "mountPath": "/run/authorities", "readOnly": True}],
            },
            {"config": {"drain": values["config"].get("drain", {})}},
        )
        port = stack.enter_context(ingress_of(rendered(values), authority, folder))
        # On port 443 nobody would have to say it.
        origins = {"config": {"frontdoor": {"public_origin": f"https://{HOST}:{port}"}}}
        door = rendered(merged(values, origins))
        evidence.given.append(("rendered", yaml.safe_dump_all(door.documents).encode()))
        pods = [
            await stack.enter_async_context(started(door, address, contents, folder / address, evidence))
            for address in ADDRESSES
        ]
        for pod in pods:
            await pod.starts()
            assert await pod.probed("liveness")
            assert await pod.probed("readiness")
        yield door, pods, port
    evidence.secrets += origin.secrets()


@contextmanager
def ingress_of(door: Rendered, authority: Authority, folder: Path) -> Iterator[int]:
    """Nginx as what the Ingress says, and what an application has there of its own."""
    ingress = door.the("Ingress")
    [rule] = ingress["spec"]["rules"]
    assert [tls["hosts"] for tls in ingress["spec"]["tls"]] == [[rule["host"]]]
    paths = [path["path"] for path in rule["http"]["paths"]]
    service = door.the("Service")
    [target] = [port["targetPort"] for port in service["spec"]["ports"]]
    for path in rule["http"]["paths"]:
        led = path["backend"]["service"]
        assert (led["name"], led["port"]["name"]) == (service["metadata"]["name"], service["spec"]["ports"][0]["name"])
    assert selected_by(service["spec"]["selector"], door.pod["metadata"]["labels"])
    directory = folder / "ingress"
    directory.mkdir()
    certificate, key = authority.server_files(directory)
    with nginx(
        _INGRESS,
        directory,
        host=rule["host"],
        certificate=certificate,
        key=key,
        endpoints=" ".join(f"server {address}:{door.ports[target]} fail_timeout=1s;" for address in ADDRESSES),
        annotated=" ".join(
            _ANNOTATED[name].format(value) for name, value in ingress["metadata"]["annotations"].items()
        ),
        application=APPLICATION,
        locations=" ".join(
            f"location {how} {{ proxy_pass http://endpoints; }}" for path in paths for how in (f"= {path}", f"{path}/")
        ),
    ) as port:
        yield port


@asynccontextmanager
async def started(
    door: Rendered, address: str, contents: Contents, folder: Path, evidence: Evidence
) -> AsyncIterator[Pod]:
    """A pod, and what it leaves."""
    security, container = door.pod["spec"]["securityContext"], door.container["securityContext"]
    assert container["readOnlyRootFilesystem"]
    user = User(container["runAsUser"], container["runAsGroup"], security["fsGroup"])
    environment = {variable["name"]: variable["value"] for variable in door.container["env"]}
    environment |= {f"{PREFIX}{listener}__HOST": address for listener in ("LISTEN", "ADMIN")}
    (root := folder / "root").mkdir(parents=True)
    async with contained(
        root,
        [COMMAND, *door.container["args"]],
        user=user,
        environment=environment,
        mounts=written(door, contents, folder),
    ) as program:
        pod = Pod(door, address, program)
        try:
            yield pod
            if program.process.returncode is None:
                pod.told_to_end()
                assert await pod.ended() == 0
        finally:
            await program.kill()
            evidence.given += [("stdout", bytes(program.stdout)), ("log", bytes(program.stderr))]
    for line in program.stderr.splitlines():
        assert msgspec.json.decode(line)["message"]


def written(door: Rendered, contents: Contents, folder: Path) -> list[Mount]:
    """Write the volumes, as the kubelet does: what is secret is root's, and readable to the group of the pod."""
    config_map = door.the("ConfigMap")
    entries = dict(contents) | {config_map["metadata"]["name"]: config_map["data"]}
    group = door.pod["spec"]["securityContext"]["fsGroup"]
    for volume in door.pod["spec"]["volumes"]:
        directory = folder / volume["name"]
        directory.mkdir(parents=True)
        for name, text in files_of(volume, entries):
            file = directory / name
            file.touch(mode=0o600)
            file.write_text(text, encoding="utf-8")
            os.chown(file, 0, group)
            file.chmod(volume.get("projected", {}).get("defaultMode", 0o644))
    return [
        Mount(folder / mount["name"], mount["mountPath"], is_read_only=mount["readOnly"])
        for mount in door.container["volumeMounts"]
    ]


def files_of(volume: Mapping[str, Any], entries: Contents) -> Iterator[tuple[str, str]]:
    """The files of a volume, by name."""
    if "configMap" in volume:
        yield from entries[volume["configMap"]["name"]].items()
    elif "secret" in volume:
        yield from entries[volume["secret"]["secretName"]].items()
    else:
        for projected in volume["projected"]["sources"]:
            for source in projected.values():
                for item in source["items"]:
                    yield item["path"], entries[source["name"]][item["key"]]


async def listening(home: Tab, url: str) -> Tab:
    """Another tab of the same person, which hears the channel."""
    tab = await home.owner.tab(f"{url}/")
    await (await tab.open_session(transport="websocket")).start(CHANNEL)
    return tab


async def asked(port: int, path: str) -> int:
    """The status of a path behind the ingress."""
    async with aiohttp.ClientSession() as session:
        url, host = f"https://127.0.0.1:{port}{path}", {"Host": f"{HOST}:{port}"}
        return (await session.get(url, headers=host, ssl=False, allow_redirects=False)).status
