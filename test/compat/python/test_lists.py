"""Lists and what is told of one sandbox, by the official Python SDK, both halves; needs the control plane only."""

import asyncio
from datetime import datetime, timedelta, timezone

import pytest
from e2b import AsyncSandbox, NotFoundException, Sandbox, SandboxException, SandboxQuery, SandboxState

TEXTS = ["a b", "a+b", "a%20b", "100%", "y&z=1", "!'()*~-._/:@,;?#[]", "ünïcödé 🧪", '"quoted"\\', "\t\n", ""]


def every(paginator):
    found = []
    while paginator.has_next:
        found += paginator.next_items()
    return found


async def every_async(paginator):
    found = []
    while paginator.has_next:
        found += await paginator.next_items()
    return found


@pytest.mark.parametrize("text", TEXTS)
def test_finds_metadata_as_it_is(text):
    metadata = {text: text, "second": text}
    box = Sandbox.create(metadata=metadata, timeout=60)
    other = Sandbox.create(metadata={f"{text}.": text, "second": f"{text}."}, timeout=60)
    for wanted in ({text: text}, metadata):
        found = every(Sandbox.list(query=SandboxQuery(metadata=wanted)))
        assert [(each.sandbox_id, each.metadata) for each in found] == [(box.sandbox_id, metadata)]
    assert every(Sandbox.list(query=SandboxQuery(metadata={**metadata, "third": ""}))) == []
    assert Sandbox.kill(box.sandbox_id) and Sandbox.kill(other.sandbox_id)


def test_lists_by_state_time_and_template_page_by_page():
    boxes = [Sandbox.create("base", timeout=60), Sandbox.create("code-interpreter-v1", timeout=60)]
    ids = [box.sandbox_id for box in boxes]
    Sandbox.pause(ids[0])
    started = Sandbox.get_info(ids[0]).started_at
    found = lambda **options: sorted(each.sandbox_id for each in every(Sandbox.list(limit=1, **options)))
    query = lambda **fields: found(query=SandboxQuery(**fields))
    assert found() == sorted(ids)
    assert query(state=[SandboxState.RUNNING, SandboxState.PAUSED]) == sorted(ids)
    assert query(state=[SandboxState.RUNNING]) == ids[1:]
    assert query(state=[SandboxState.PAUSED]) == ids[:1]
    assert query(template="code-interpreter-v1") == ids[1:]
    assert query(started_after=started) == sorted(ids)
    # Of another zone, and of none.
    assert query(started_after=started.astimezone(timezone(timedelta(hours=9)))) == sorted(ids)
    assert query(started_after=datetime.now() + timedelta(hours=1)) == []
    assert [each.sandbox_id for each in every(Sandbox.list(order="asc"))] in (ids, ids[::-1])
    with pytest.raises(SandboxException, match="limit"):
        Sandbox.list(limit=101).next_items()
    for box in boxes:
        box.kill()
    assert found() == []


def test_is_told_everything_about_a_sandbox():
    box = Sandbox.create("code-interpreter-v1", timeout=60, metadata={"who": "ann"}, allow_internet_access=False)
    info = box.get_info()
    assert info.sandbox_id == box.sandbox_id
    assert (info.name, info.metadata, info.state) == ("code-interpreter-v1", {"who": "ann"}, SandboxState.RUNNING)
    assert info.end_at - info.started_at == timedelta(seconds=60)
    assert abs(info.started_at - datetime.now(timezone.utc)) < timedelta(seconds=30)
    assert info.cpu_count >= 1 and info.memory_mb >= 128 and info.envd_version == "0.6.13"
    assert info.allow_internet_access is False
    assert info.lifecycle == {"on_timeout": "kill", "auto_resume": False}
    box.set_timeout(3600)
    assert box.get_info().end_at - info.end_at > timedelta(seconds=3500)
    box.set_timeout(0)
    with pytest.raises(NotFoundException):
        box.get_info()
        box.get_info()
    assert Sandbox.kill(box.sandbox_id) is False


@pytest.mark.asyncio
async def test_lists_of_async_sandboxes():
    boxes = await asyncio.gather(*(AsyncSandbox.create(metadata={"suite": "async & more"}) for _ in range(4)))
    ids = sorted(box.sandbox_id for box in boxes)
    query = SandboxQuery(metadata={"suite": "async & more"}, state=[SandboxState.RUNNING])
    assert sorted(each.sandbox_id for each in await every_async(AsyncSandbox.list(query=query, limit=3))) == ids
    assert (await AsyncSandbox.get_info(ids[0])).metadata == {"suite": "async & more"}
    assert all(await asyncio.gather(*(AsyncSandbox.kill(each) for each in ids)))
