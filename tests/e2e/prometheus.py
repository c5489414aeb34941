"""A real Prometheus that scrapes proxies, with the configuration, the rules and the dashboard of deploy/."""

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import yaml

from .programs import running


DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus/alerts.yaml"
EXAMPLE = DEPLOY / "prometheus/prometheus.example.yml"
DASHBOARD = DEPLOY / "grafana/c8y-realtime-proxy.json"

_LISTENING = re.compile(rb"Listening on.* address=127\.0\.0\.1:(\d+)")
_READY = b"Server is ready to receive web requests"

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Series:
    """One series of an answer: its labels, and its values in the order of time."""

    labels: Mapping[str, str]
    values: Sequence[float]


class Prometheus:
    """Its HTTP interface, as Grafana uses it."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1"

    async def query(self, expression: str) -> dict[Labels, float]:
        """What an expression amounts to now, by labels."""
        told = await self.ask("query", query=expression)
        if told["resultType"] == "scalar":
            return {frozenset(): float(told["result"][1])}
        return {frozenset(each["metric"].items()): float(each["value"][1]) for each in told["result"]}

    async def range(self, expression: str, start: float, end: float) -> list[Series]:
        """What it amounted to in each second of a time."""
        told = await self.ask("query_range", query=expression, start=str(start), end=str(end), step="1")
        return [Series(each["metric"], [float(value) for _, value in each["values"]]) for each in told["result"]]

    async def values(self, label: str, selector: str) -> list[str]:
        """What a label says in the series that are selected."""
        found: list[str] = await self.ask(f"label/{label}/values", **{"match[]": selector})
        return found

    async def rules(self) -> list[dict[str, Any]]:
        """All rules, and how they fare."""
        told = await self.ask("rules")
        return [rule for group in told["groups"] for rule in group["rules"]]

    async def firing(self) -> set[str]:
        """The alerts that fire now."""
        return {dict(labels)["alertname"] for labels in await self.query('ALERTS{alertstate="firing"}')}

    async def ask(self, path: str, **parameters: str) -> Any:
        """Any answer. Raises aiohttp.ClientResponseError for what Prometheus does not understand."""
        async with (
            aiohttp.ClientSession(raise_for_status=True) as session,
            session.get(f"{self._url}/{path}", params=parameters) as answer,
        ):
            told = msgspec.json.decode(await answer.read())
        assert (told["status"], told.get("warnings")) == ("success", None), told
        return told["data"]


@asynccontextmanager
async def scraping(folder: Path, *targets: str) -> AsyncIterator[Prometheus]:
    """One that scrapes these each second, by the example in deploy/. Its alerts fire after a second in place of
    minutes; all else of the rules is as it is.
    """
    rules = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    for group in rules["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                rule["for"] = "1s"
    (folder / "alerts.yaml").write_text(yaml.safe_dump(rules), encoding="utf-8")
    configuration = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    configuration["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
    [job] = configuration["scrape_configs"]
    job["static_configs"][0]["targets"] = list(targets)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration), encoding="utf-8")
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:0",
    ]
    async with running(*command) as program:
        # It says where it listens, and then that it serves.
        while _READY not in await program.error_line():
            pass
        listening = _LISTENING.search(program.stderr)
        assert listening
        yield Prometheus(int(listening[1]))
