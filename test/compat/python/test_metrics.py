"""`get_metrics` of the official Python SDK, both halves."""

import asyncio
import time
from datetime import datetime, timedelta, timezone

import pytest
from e2b_code_interpreter import AsyncSandbox, NotFoundException, Sandbox

from programs import until


def check(sample, began):
    assert sample.cpu_count >= 1 and 0 <= sample.cpu_used_pct <= 100
    assert 1_000_000 < sample.mem_used < sample.mem_total
    assert 0 < sample.disk_used <= sample.disk_total
    assert 0 <= sample.timestamp.astimezone(timezone.utc).timestamp() - int(began) < 60


def ranges(first):
    """One around the first sample, and one that ended a while before it."""
    moment = first.timestamp.astimezone(timezone.utc)
    return (
        dict(start=moment - timedelta(seconds=10), end=datetime.now(timezone.utc) + timedelta(seconds=10)),
        dict(start=moment - timedelta(hours=1), end=moment - timedelta(minutes=1)),
    )


def test_metrics_of_a_sandbox():
    began = time.time()
    box = Sandbox.create(timeout=120)
    until(lambda: len(box.get_metrics()) > 0, deadline=20)
    first = box.get_metrics()[0]
    check(first, began)
    assert Sandbox.get_metrics(box.sandbox_id)[0].mem_used == first.mem_used
    around, before = ranges(first)
    assert box.get_metrics(**around)[0].timestamp == first.timestamp
    assert box.get_metrics(**before) == []
    until(lambda: len(box.get_metrics()) > 1, deadline=20)
    box.kill()
    with pytest.raises(NotFoundException):
        Sandbox.get_metrics(box.sandbox_id)


async def until_more_samples(box, than):
    deadline = time.monotonic() + 20
    while len(await box.get_metrics()) <= than:
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.1)


@pytest.mark.asyncio
async def test_metrics_of_an_async_sandbox():
    began = time.time()
    box = await AsyncSandbox.create(timeout=120)
    await until_more_samples(box, than=0)
    first = (await box.get_metrics())[0]
    check(first, began)
    assert (await AsyncSandbox.get_metrics(box.sandbox_id))[0].mem_used == first.mem_used
    around, before = ranges(first)
    assert (await box.get_metrics(**around))[0].timestamp == first.timestamp
    assert await box.get_metrics(**before) == []
    await until_more_samples(box, than=1)
    await box.kill()
