"""What the examples configure, run as kubelet runs it: the real proxy with the user, the root and the files of its
container, in a network of its pod's, between an application and a tenant.
"""

import asyncio
import os
import secrets
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import pytest
import yaml

from proxy.config import PREFIX
from proxy.demo.simulator import Simulator
from tests.e2e.origin import TENANT, Origin
from tests.e2e.programs import Program
from tests.e2e.stage import Client, Evidence
from tests.e2e.upstreams import Account
from tests.test_deploy import ROOT

from .application import CHANNEL
from .containers import pod_network
from .kubelet import Pod, running_pod
from .rendering import COMPONENT, MANIFESTS, NAME, Manifest, kustomization, rendered, workloads


PodOpener = Callable[..., AbstractAsyncContextManager[Pod]]

_APPLICATION: Final = [sys.executable, str(ROOT / "tests/e2e/sidecar/application.py")]


@pytest.fixture
def network() -> Iterator[None]:
    """Nobody else is in the network of the pod, and of its tenant."""
    with pod_network():
        yield


@dataclass
class Tenant:
    """The tenant, and the account that a Secret holds."""

    origin: Origin
    account: Account

    def change_password(self) -> dict[str, str]:
        """Let the account have another password, and no more the one it had; returns what a Secret has to say of it."""
        self.account = replace(self.account, password=f"canary-{secrets.token_hex(16)}")
        simulator = self.origin.simulator
        simulator.accounts = replace(simulator.accounts, password=self.account.password)
        return self.account.files()


@pytest.fixture
async def tenant(network: None) -> AsyncIterator[Tenant]:  # noqa: ARG001 - it is where the fixture says
    account = Account("service", f"canary-{secrets.token_hex(16)}", tenant=TENANT)
    async with Simulator(tenant=TENANT, user=account.user, password=account.password) as simulator:
        yield Tenant(Origin(simulator, simulator.url, None), account)


@pytest.fixture
def open_pod(tmp_path: Path, tenant: Tenant, evidence: Evidence) -> PodOpener:
    """Run the pod of a workload, of an example or of one's own with the component, rendered for this tenant as users
    render theirs. `does` is what the program of the application's image does.
    """

    @asynccontextmanager
    async def opener(
        of: str | Manifest,
        kind: str,
        *does: str,
        secret: Mapping[str, str] | None = None,
        settings: Sequence[str] = (),
        **said: Any,
    ) -> AsyncIterator[Pod]:
        ours: Manifest = {"name": NAME, "literals": [f"{PREFIX}UPSTREAM__URL={tenant.origin.url}", *settings]}
        if isinstance(of, str):
            said |= {"resources": [MANIFESTS / "examples" / of]}
            ours |= {"behavior": "merge"}
        else:
            said |= {"manifests": [of], "components": [COMPONENT]}
        overlay = kustomization(tmp_path / "overlay", configMapGenerator=[ours], **said)
        [workload] = [it for it in workloads(rendered(overlay)) if it.manifest["kind"] == kind]
        programs = tmp_path / "image"
        programs.mkdir()
        program = programs / "application"
        program.write_text(f'#!/bin/sh\nexec {shlex.join([*_APPLICATION, *does])} "$@"\n', encoding="utf-8")
        program.chmod(0o755)
        values = tenant.account.files() if secret is None else secret
        evidence.secrets += tenant.account.secrets()
        async with running_pod(workload, tmp_path / "pod", secret=values, applications=programs) as pod:
            yield pod
        evidence.secrets += tenant.account.secrets()
        for container in pod.containers.values():
            for number, program_of in enumerate(container.programs):
                evidence.given += [
                    (f"{container.name} {number} stdout", bytes(program_of.stdout)),
                    (f"{container.name} {number} log", bytes(program_of.stderr)),
                ]

    return opener


def client_of(pod: Pod) -> Client:
    return Client(pod.containers["application"].program)


def lines_of(program: Program) -> list[Manifest]:
    """What a proxy logged."""
    return [msgspec.json.decode(line) for line in bytes(program.stderr).splitlines()]


class TestDeployment:
    async def test_the_official_client_hears_through_localhost_and_holds_no_key(
        self, open_pod: PodOpener, tenant: Tenant
    ) -> None:
        async with open_pod("deployment", "Deployment", "official") as pod:
            client = client_of(pod)
            await client.next("ready")
            await client.start(CHANNEL)
            await tenant.origin.publish(CHANNEL, 1, 3)
            await client.receive(CHANNEL, 1, 3)
            await pod.until(lambda pod: pod.is_ready)
        log = lines_of(pod.sidecar.program)
        assert log
        assert all(line.keys() >= {"time", "level", "logger", "message"} for line in log)

    async def test_the_sidecar_is_there_before_the_application_and_after_it(self, open_pod: PodOpener) -> None:
        async with open_pod("deployment", "Deployment", "serve") as pod:
            client = client_of(pod)
            assert (await client.next("handshake")).successful
            await pod.until(lambda pod: pod.is_ready and len(pod.sidecar.probed["liveness"]) > 1)
            await pod.delete()
        assert pod.told == [
            f"{NAME} started",
            f"{NAME} passed its startup probe",
            "application started",
            "SIGTERM",
            "application ended with 0",
            f"SIGTERM to {NAME}",
            f"{NAME} ended with 0",
        ]
        assert pod.sidecar.probed["startup"][-1] == 200
        assert {*pod.sidecar.probed["liveness"], *pod.sidecar.probed["readiness"]} == {200}

    async def test_a_changed_secret_counts_for_the_next_connection_without_a_restart(
        self, open_pod: PodOpener, tenant: Tenant, evidence: Evidence
    ) -> None:
        async with open_pod("deployment", "Deployment", "serve") as pod:
            client = client_of(pod)
            assert (await client.next("handshake")).successful
            await client.subscribed(CHANNEL)
            pod.change_secret(tenant.change_password())
            evidence.secrets += tenant.account.secrets()
            await pod.delete()  # the application opens another session on its way out
            assert (await client.next("handshake")).successful
        assert pod.told.count(f"{NAME} started") == 1

    async def test_without_a_credential_it_gets_no_traffic_until_there_is_one(
        self, open_pod: PodOpener, tenant: Tenant
    ) -> None:
        async with open_pod("deployment", "Deployment", "official", secret={"tenant": TENANT}) as pod:
            client = client_of(pod)
            await client.next("ready")
            await pod.until(lambda pod: len(pod.sidecar.probed["readiness"]) > 2)
            assert not pod.is_ready
            pod.change_secret(tenant.account.files())
            await pod.until(lambda pod: pod.is_ready)
            await client.start(CHANNEL)
        assert set(pod.sidecar.probed["liveness"]) == {200}
        assert set(pod.sidecar.probed["readiness"]) == {503, 200}
        assert pod.told.count(f"{NAME} started") == 1

    async def test_a_sidecar_that_is_killed_is_started_again_and_the_client_comes_back(
        self, open_pod: PodOpener, tenant: Tenant
    ) -> None:
        async with open_pod("deployment", "Deployment", "official") as pod:
            client = client_of(pod)
            await client.next("ready")
            await client.start(CHANNEL)
            os.kill(pod.sidecar.program.process.pid, signal.SIGKILL)
            await pod.until(lambda pod: pod.told.count(f"{NAME} passed its startup probe") == 2)
            # Upstream knows its session still, so it goes on with it, and need not shake hands again.
            await client.goes_on(lambda number: tenant.origin.publish(CHANNEL, number, 1), 1)
        assert f"{NAME} ended with {-signal.SIGKILL}" in pod.told
        assert pod.told.count("application started") == 1


async def test_every_container_of_any_application_can_use_it_and_its_init_containers_too(open_pod: PodOpener) -> None:
    """Of one that has a user, a group of files and the port 8080 of its own."""
    its = {"image": "application", "env": [{"name": "REALTIME_URL", "value": "http://localhost:8081/cep/realtime"}]}
    pod_of_its_own = {
        "securityContext": {"runAsUser": 4711, "fsGroup": 4712},
        "initContainers": [its | {"name": "prepare", "args": ["work", "0", "0"]}],
        "containers": [its | {"name": "application", "args": ["serve"]}, its | {"name": "other", "args": ["serve"]}],
        "volumes": [{"name": "data", "emptyDir": {}}],
    }
    manifest = {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "awkward", "labels": {NAME: "sidecar"}},
        "spec": {"serviceName": "awkward", "template": {"spec": pod_of_its_own}},
    }
    async with open_pod(manifest, "StatefulSet", settings=[f"{PREFIX}LISTEN__PORT=8081"]) as pod:
        for name in ("application", "other"):
            assert (await Client(pod.containers[name].program).next("handshake")).successful
        await pod.until(lambda pod: pod.is_ready)
        await pod.delete()
    assert pod.told[2:6] == ["prepare started", "prepare ended with 0", "application started", "other started"]
    assert [container.codes for container in pod.containers.values()] == [[0], [0], [0], [0]]


@pytest.mark.parametrize(
    ("name", "kind", "code", "phase"),
    [
        pytest.param("job", "Job", 0, "Succeeded", id="job"),
        pytest.param("job", "Job", 3, "Failed", id="job that fails"),
        pytest.param("cronjob", "CronJob", 0, "Succeeded", id="cronjob"),
        pytest.param("classic", "Job", 0, "Succeeded", id="classic"),
        pytest.param("classic", "Job", 3, "Failed", id="classic that fails"),
    ],
)
async def test_a_job_is_over_with_its_work_and_as_its_work(
    open_pod: PodOpener, tenant: Tenant, *, name: str, kind: str, code: int, phase: str
) -> None:
    async with open_pod(name, kind, "work", "2", str(code)) as pod:
        client = client_of(pod)
        assert (await client.next("handshake")).successful
        await client.subscribed(CHANNEL)
        await tenant.origin.publish(CHANNEL, 1, 2)
        await client.receive(CHANNEL, 1, 2)
        assert await pod.completed() == phase
    assert (pod.sidecar.codes, pod.containers["application"].codes) == ([0], [code])
    # Of a native sidecar kubelet sees to the end; a classic one was told to.
    assert pod.told.count(f"SIGTERM to {NAME}") == (name != "classic")


class TestClassic:
    async def test_the_application_is_started_when_the_sidecar_is_ready(self, open_pod: PodOpener) -> None:
        async with open_pod("classic", "Deployment", "serve") as pod:
            assert (await client_of(pod).next("handshake")).successful
            assert pod.told[:3] == [f"{NAME} started", f"{NAME} ended its postStart", "application started"]

    async def test_it_serves_for_a_while_after_sigterm_and_then_ends_in_order(self, open_pod: PodOpener) -> None:
        shorter = {"name": NAME, "env": [{"name": f"{PREFIX}DRAIN__ACCEPT_SECONDS", "value": "2"}]}
        deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "application"}}
        patch = deployment | {"spec": {"template": {"spec": {"containers": [shorter]}}}}
        patches = [{"patch": yaml.safe_dump(patch)}]
        async with open_pod("classic", "Deployment", "outlive", patches=patches) as pod:
            client = client_of(pod)
            assert (await client.next("handshake")).successful
            await client.subscribed(CHANNEL)
            await pod.until(lambda pod: pod.is_ready)
            await pod.delete()
            assert (await client.next("handshake")).successful
        assert pod.told[-3:] == ["SIGTERM", "application ended with 0", f"{NAME} ended with 0"]

    async def test_a_job_that_is_deleted_ends_its_work_and_then_tells_the_sidecar(self, open_pod: PodOpener) -> None:
        async with open_pod("classic", "Job", "serve") as pod:
            client = client_of(pod)
            assert (await client.next("handshake")).successful
            # It would go on to accept for so long, if nobody told it that it is not needed any more.
            async with asyncio.timeout(pod.workload.configuration().drain.accept_seconds):
                await pod.delete()
            assert (await client.next("handshake")).successful
        assert (pod.sidecar.codes, pod.containers["application"].codes) == ([0], [0])

    async def test_a_stranger_cannot_end_it(self, open_pod: PodOpener, monkeypatch: pytest.MonkeyPatch) -> None:
        """Neither over the network, nor another user who finds the socket, nor by a mere POST."""
        async with open_pod("classic", "Job", "serve") as pod:
            assert (await client_of(pod).next("handshake")).successful
            async with aiohttp.ClientSession() as session:
                answer = await session.post("http://localhost:9090/quit", headers={"X-C8y-Realtime-Proxy": "quit"})
                assert answer.status >= 400
            socket = pod.directory / "volumes" / NAME / "admin.sock"
            about = socket.stat()
            assert (about.st_mode & 0o777, about.st_uid, about.st_gid) == (0o660, 65532, 10001)
            monkeypatch.chdir(socket.parent)  # the whole path may be longer than such an address
            async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(socket.name)) as session:
                assert (await session.post("http://localhost/quit")).status >= 400
            assert pod.sidecar.codes == []
