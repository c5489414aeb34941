"""A kubelet in miniature: it runs the pod of a rendered workload as Kubernetes says that pods are run.

Init containers in their order, each once the one before has ended or, a sidecar, has started by its startup probe; the
others in their order, each after the `postStart` of the one before. Probes at the pod's address, by their periods and
thresholds. Sidecars that end are started again. At the end SIGTERM: to all at one moment, and to sidecars when the
others have ended, in the reverse of their order. A container that liveness gives up, or that has not ended when the
grace period is over, has failed here: no test wants either.
"""

import asyncio
import os
import secrets
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, Literal

import aiohttp
import msgspec

from tests.credentials.test_stored import project
from tests.e2e.programs import Program
from tests.test_deploy import image_environment, said

from .containers import POD_ADDRESS, Mount, User, contained
from .rendering import NAME, Manifest, Workload


PACE: Final = 0.1
"""Probes are asked ten times as often as the manifest says."""

_HURRIED_SECONDS: Final = 0.01
_SIDECARS_GRACE_SECONDS: Final = 2.0


Role = Literal["init", "sidecar", "application"]


class Failed(Exception):
    """The pod could not be run; the text says what Kubernetes would say."""


class Container:
    """One container, and what has become of it: `codes` are those of its ends, `probed` the answers to its probes."""

    def __init__(self, specification: Manifest, role: Role) -> None:
        self.name: str = specification["name"]
        self.specification = specification
        self.role = role
        self.is_started = self.is_ready = False
        self.codes: list[int] = []
        self.probed: dict[str, list[int]] = {"startup": [], "liveness": [], "readiness": []}
        self.programs: list[Program] = []

    @property
    def program(self) -> Program:
        """Its process of now."""
        return self.programs[-1]


class Pod:
    """A pod under way. `told` is what happened, in order."""

    def __init__(self, workload: Workload, directory: Path, secret: Mapping[str, str], applications: Path) -> None:
        self.workload = workload
        self.specification = workload.pod
        self.containers: dict[str, Container] = {}
        self.told: list[str] = []
        self.directory = directory
        self._applications = applications
        self._is_ending = False
        self._tasks: list[asyncio.Task[None]] = []
        self._programs = AsyncExitStack()
        self._group_of_files: int | None = self.specification.get("securityContext", {}).get("fsGroup")
        for volume in self.specification["volumes"]:
            self._make_volume(volume)
        self.change_secret(secret)

    @property
    def sidecar(self) -> Container:
        return self.containers[NAME]

    @property
    def is_ready(self) -> bool:
        """Whether it gets traffic."""
        return all(container.is_ready for container in self.containers.values() if container.role != "init")

    def change_secret(self, values: Mapping[str, str]) -> None:
        """Lay out the Secret, or change what is there."""
        [volume] = [volume for volume in self.specification["volumes"] if "secret" in volume]
        mount, generation = self._volume(volume["name"]), f"..{secrets.token_hex(4)}"
        project(mount, generation, **values)
        for path in (mount / generation).iterdir():
            path.chmod(volume["secret"]["defaultMode"])

    async def start(self) -> None:
        """Start it, up to the last of its containers. Raises Failed."""
        for specification in self.specification.get("initContainers", ()):
            is_sidecar = specification.get("restartPolicy") == "Always"
            container = Container(specification, "sidecar" if is_sidecar else "init")
            await self._start(container)
            if is_sidecar:
                await self._started(container)
                self._meanwhile(self._keep(container))
                self._probe(container)
            elif (code := await self._ended(container)) != 0:
                raise Failed(f"Init:Error: {container.name} ended with {code}")
        for specification in self.specification["containers"]:
            container = Container(specification, "application")
            await self._start(container)
            await self._post_start(container)
            self._meanwhile(self._started(container))
            self._probe(container)

    async def until(self, condition: Callable[["Pod"], bool], *, seconds: float = 20) -> None:
        """Wait until this is so."""
        async with asyncio.timeout(seconds):
            while not condition(self):  # noqa: ASYNC110 - nobody tells us
                await asyncio.sleep(_HURRIED_SECONDS)

    async def completed(self, *, seconds: float = 30) -> str:
        """Wait until the work is done, and end what is left, as for a Job; returns the phase of the pod."""
        applications = self._those("application")
        async with asyncio.timeout(seconds):
            await asyncio.gather(*map(self._ended, applications))
        await self._end_sidecars(_SIDECARS_GRACE_SECONDS + self._grace_seconds)
        return "Failed" if any(container.codes[-1] for container in applications) else "Succeeded"

    async def delete(self) -> None:
        """End it, as for a Deployment that is rolled out anew. Raises Failed if that takes more than its time."""
        self._is_ending = True
        end = asyncio.get_running_loop().time() + self._grace_seconds
        applications = self._those("application")
        self.told.append("SIGTERM")
        await asyncio.gather(*(self._terminate(container, self._grace_seconds) for container in applications))
        left = end - asyncio.get_running_loop().time()
        await self._end_sidecars(max(left, _SIDECARS_GRACE_SECONDS))

    async def close(self) -> None:
        """Leave nothing behind, and have all that was said at hand."""
        self._is_ending = True
        for task in self._tasks:
            task.cancel()
        faults = await asyncio.gather(*self._tasks, return_exceptions=True)
        for container in self.containers.values():
            for program in container.programs:
                _signal(program, signal.SIGKILL)
                await program.wait(seconds=10)
        await self._programs.aclose()
        for fault in faults:
            if isinstance(fault, Exception):
                raise fault

    @property
    def _grace_seconds(self) -> float:
        seconds: float = self.specification.get("terminationGracePeriodSeconds", 30)
        return seconds

    def _those(self, role: Role) -> list[Container]:
        return [container for container in self.containers.values() if container.role == role]

    def _volume(self, name: str) -> Path:
        return self.directory / "volumes" / name

    def _make_volume(self, volume: Manifest) -> None:
        path = self._volume(volume["name"])
        path.mkdir(parents=True)
        path.chmod(0o777 if "emptyDir" in volume else 0o755)
        if "emptyDir" in volume and self._group_of_files is not None:
            shutil.chown(path, group=self._group_of_files)
            path.chmod(0o2777)

    async def _start(self, container: Container) -> None:
        self.containers[container.name] = container
        specification = container.specification
        entrypoint, arguments = self._entrypoint(specification["image"])
        command = specification.get("command", entrypoint)
        words = [*command, *specification.get("args", [] if "command" in specification else arguments)]
        container.is_started = container.is_ready = False
        container.programs.append(await self._run(container, words))
        self.told.append(f"{container.name} started")

    async def _run(self, container: Container, command: list[str]) -> Program:
        specification = container.specification
        context = self.specification.get("securityContext", {}) | specification.get("securityContext", {})
        environment = self.workload.environment(specification)
        if container.name == NAME:
            ours = {name: value for name, value in image_environment().items() if name != "PATH"}
            environment = ours | environment
        mounts = [
            Mount(self._volume(mount["name"]), mount["mountPath"], is_read_only=mount.get("readOnly", False))
            for mount in specification.get("volumeMounts", ())
        ]
        root = self.directory / container.name
        root.mkdir(exist_ok=True)
        return await self._programs.enter_async_context(
            contained(
                root,
                command,
                user=User(context["runAsUser"], context.get("runAsGroup", 0), self._group_of_files),
                environment=environment,
                mounts=mounts,
                image=self._applications,
            )
        )

    @staticmethod
    def _entrypoint(image: str) -> tuple[list[str], list[str]]:
        """What an image says of itself: the command, and its arguments."""
        name = image.rpartition("/")[2].partition(":")[0]
        if name == NAME:
            return msgspec.json.decode(said("ENTRYPOINT")), msgspec.json.decode(said("CMD"))
        return [name], []

    async def _ended(self, container: Container) -> int:
        code = await container.program.process.wait()
        container.codes.append(code)
        container.is_ready = False
        self.told.append(f"{container.name} ended with {code}")
        return code

    async def _keep(self, container: Container) -> None:
        """Start it again whenever it ends, but not at the end of the pod."""
        while True:
            await self._ended(container)
            if self._is_ending:
                return
            await self._start(container)
            await self._started(container)

    async def _started(self, container: Container) -> None:
        """Wait for its startup probe. Raises Failed."""
        probe = container.specification.get("startupProbe")
        if probe is not None:
            try:
                async with asyncio.timeout(probe["failureThreshold"] * probe["periodSeconds"]):
                    while not await self._ask(container, "startup", probe):
                        if (code := container.program.process.returncode) is not None:
                            raise Failed(f"CrashLoopBackOff: {container.name} ended with {code} while it started")
                        await asyncio.sleep(probe["periodSeconds"] * PACE)
            except TimeoutError:
                raise Failed(f"Unhealthy: {container.name} does not start") from None
            self.told.append(f"{container.name} passed its startup probe")
        container.is_started = True
        container.is_ready = "readinessProbe" not in container.specification

    async def _post_start(self, container: Container) -> None:
        hook = container.specification.get("lifecycle", {}).get("postStart")
        if hook is not None:
            program = await self._run(container, hook["exec"]["command"])
            if (code := await program.wait(seconds=70)) != 0:
                raise Failed(f"FailedPostStartHook: {container.name} ended it with {code}: {program.stderr.decode()}")
            self.told.append(f"{container.name} ended its postStart")

    def _meanwhile(self, work: Coroutine[None, None, None]) -> None:
        self._tasks.append(asyncio.create_task(work))  # noqa: TID251 - owned by the pod, awaited in close

    def _probe(self, container: Container) -> None:
        for kind in ("readiness", "liveness"):
            probe = container.specification.get(f"{kind}Probe")
            if probe is not None:
                self._meanwhile(self._go_on_asking(container, kind, probe))

    async def _go_on_asking(self, container: Container, kind: str, probe: Manifest) -> None:
        """Raises Failed where liveness would have it started again."""
        failures = 0
        while not self._is_ending:
            if container.is_started:
                is_good = await self._ask(container, kind, probe)
                failures = 0 if is_good else failures + 1
                if kind == "readiness" and (is_good or failures >= probe["failureThreshold"]):
                    container.is_ready = is_good
                if kind == "liveness" and failures >= probe["failureThreshold"]:
                    raise Failed(f"Unhealthy: {container.name} does not answer any more")
            await asyncio.sleep(probe["periodSeconds"] * PACE)

    async def _ask(self, container: Container, kind: str, probe: Manifest) -> bool:
        """Ask as kubelet asks; what is neither 2xx nor 3xx is a failure, and so is silence."""
        asked: dict[str, Any] = probe["httpGet"]
        [port] = [it["containerPort"] for it in container.specification["ports"] if it["name"] == asked["port"]]
        status = 0
        headers = {"User-Agent": "kube-probe/1.37", "Accept": "*/*", "Connection": "close"}
        timeout = aiohttp.ClientTimeout(total=probe["timeoutSeconds"])
        with suppress(aiohttp.ClientError, TimeoutError):
            async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:
                status = (await session.get(f"http://{POD_ADDRESS}:{port}{asked['path']}")).status
        container.probed[kind].append(status)
        return 200 <= status < 400

    async def _terminate(self, container: Container, seconds: float) -> None:
        """End it within a time. Raises Failed if it takes more."""
        if container.role == "sidecar":
            self.told.append(f"SIGTERM to {container.name}")
        _signal(container.program, signal.SIGTERM)
        try:
            async with asyncio.timeout(seconds):
                if container.role == "sidecar":  # somebody waits for it already
                    await container.program.process.wait()
                else:
                    await self._ended(container)
        except TimeoutError:
            raise Failed(f"{container.name} did not end within {seconds:.0f} s") from None

    async def _end_sidecars(self, seconds: float) -> None:
        self._is_ending = True
        for container in reversed(self._those("sidecar")):
            await self._terminate(container, seconds)
        await self.until(lambda pod: all(container.codes for container in pod.containers.values()))


def _signal(program: Program, number: signal.Signals) -> None:
    """Send it, unless it is too late. Not by the process itself: that may take its exit code away from asyncio."""
    if program.process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(program.process.pid, number)


@asynccontextmanager
async def running_pod(
    workload: Workload, directory: Path, *, secret: Mapping[str, str], applications: Path
) -> AsyncIterator[Pod]:
    """Run the pod of a workload, whose own programs are in `applications`; raises Failed if it does not come up."""
    pod = Pod(workload, directory, secret, applications)
    try:
        await pod.start()
        yield pod
    finally:
        await pod.close()
