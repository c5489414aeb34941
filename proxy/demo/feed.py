"""Notifications of an invented plant, in the shapes the platform sends, for a simulator to publish."""

import asyncio
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import Any

from proxy.demo.simulator import Simulator


@dataclass(frozen=True, slots=True)
class Device:
    """One that measures a single thing; `alarm` is what it complains about now and then."""

    id: str
    name: str
    fragment: str
    series: str
    unit: str
    usual: float
    swing: float
    alarm: str


@dataclass(frozen=True, slots=True)
class Notification:
    channel: str
    data: dict[str, Any]


DEVICES = (
    Device("4711", "Boiler house", "c8y_Temperature", "T", "°C", 68.0, 4.0, "Flow temperature above limit"),
    Device("4712", "Cold store 2", "c8y_Temperature", "T", "°C", -18.5, 1.5, "Door open for five minutes"),
    Device("4713", "Pump station", "c8y_Pressure", "P", "bar", 4.2, 0.6, "Pressure falls too fast"),
    Device("4714", "Wind mast", "c8y_Wind", "speed", "m/s", 9.0, 5.0, "Gust above cut-out speed"),
)
_MEASUREMENTS_BETWEEN_ALARMS = 11


def notifications(random: Random, now: Callable[[], datetime]) -> Iterator[Notification]:
    """Measurements of every device in turn, without end; from time to time one raises an alarm, and clears it."""
    ids = itertools.count(20_001)
    alarming = itertools.cycle(DEVICES)
    raised: dict[str, Any] | None = None
    for turn in itertools.count():
        device = DEVICES[turn % len(DEVICES)]
        yield _measurement(device, str(next(ids)), wave=turn / 14, noise=random.gauss(0, 0.12), time=_written(now()))
        if turn % _MEASUREMENTS_BETWEEN_ALARMS != _MEASUREMENTS_BETWEEN_ALARMS - 1:
            continue
        if raised is None:
            severity = random.choice(("MAJOR", "MINOR", "WARNING"))
            raised = _alarm(next(alarming), str(next(ids)), severity=severity, time=_written(now()))
            yield Notification(_alarm_channel(raised), {"realtimeAction": "CREATE", "data": raised})
        else:
            cleared = {**raised, "status": "CLEARED"}
            yield Notification(_alarm_channel(raised), {"realtimeAction": "UPDATE", "data": cleared})
            raised = None


async def feed(simulator: Simulator, *, seconds_between: float = 0.7, random: Random | None = None) -> None:
    """Publish until cancelled."""
    source = random or Random()  # noqa: S311 - the weather of an invented plant is no secret
    for notification in notifications(source, lambda: datetime.now(UTC)):
        simulator.publish(notification.channel, notification.data)
        await asyncio.sleep(seconds_between)


def _measurement(device: Device, measurement_id: str, *, wave: float, noise: float, time: str) -> Notification:
    phase = wave + float(device.id) % 7
    value = round(device.usual + device.swing * (0.8 * math.sin(phase) + noise), 2)
    measured = {
        "id": measurement_id,
        "type": f"{device.fragment}Measurement",
        "time": time,
        "source": {"id": device.id, "name": device.name},
        device.fragment: {device.series: {"value": value, "unit": device.unit}},
    }
    return Notification(f"/measurements/{device.id}", {"realtimeAction": "CREATE", "data": measured})


def _alarm(device: Device, alarm_id: str, *, severity: str, time: str) -> dict[str, Any]:
    return {
        "id": alarm_id,
        "type": "c8y_PlantAlarm",
        "time": time,
        "text": device.alarm,
        "severity": severity,
        "status": "ACTIVE",
        "source": {"id": device.id, "name": device.name},
    }


def _alarm_channel(alarm: dict[str, Any]) -> str:
    return f"/alarms/{alarm['source']['id']}"


def _written(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
