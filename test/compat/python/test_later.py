"""What of E2B is not here yet, by the official Python SDK, both halves; needs the control plane only."""

import asyncio
from types import SimpleNamespace

import pytest
from e2b import (
    AsyncSandbox,
    AsyncSecret,
    AsyncTemplate,
    AsyncVolume,
    BuildException,
    Sandbox,
    SandboxException,
    Secret,
    SecretException,
    Template,
    TemplateException,
    Volume,
    VolumeException,
)

BUILDS = "Building templates"
TAGS = "Template tags"
BUILD = SimpleNamespace(template_id="x", build_id="00000000-0000-4000-8000-000000000000")

# Name, exception, what comes later, call: given the classes of one half, and a sandbox of it.
LATER = [
    ("fork", SandboxException, "Forking a sandbox", lambda c, box: box.fork()),
    ("fork_by_id", SandboxException, "Forking a sandbox", lambda c, box: c.Sandbox.fork(box.sandbox_id)),
    ("create_snapshot", SandboxException, "Snapshots", lambda c, box: box.create_snapshot()),
    ("create_snapshot_by_id", SandboxException, "Snapshots", lambda c, box: c.Sandbox.create_snapshot(box.sandbox_id)),
    ("list_snapshots", SandboxException, "Snapshots", lambda c, box: box.list_snapshots().next_items()),
    ("list_all_snapshots", SandboxException, "Snapshots", lambda c, box: c.Sandbox.list_snapshots().next_items()),
    (
        "delete_snapshot",
        SandboxException,
        "Deleting a template or snapshot",
        lambda c, box: c.Sandbox.delete_snapshot("team/name:v1"),
    ),
    ("build", BuildException, BUILDS, lambda c, box: c.Template.build(recipe(c), "my-template")),
    ("build_in_background", BuildException, BUILDS, lambda c, box: c.Template.build_in_background(recipe(c), "my-t")),
    ("get_build_status", BuildException, BUILDS, lambda c, box: c.Template.get_build_status(BUILD)),
    ("get_tags", TemplateException, TAGS, lambda c, box: c.Template.get_tags("x")),
    ("assign_tags", TemplateException, TAGS, lambda c, box: c.Template.assign_tags("x:v1", ["v2"])),
    ("remove_tags", TemplateException, TAGS, lambda c, box: c.Template.remove_tags("x", ["v2"])),
    ("volume_create", VolumeException, "Volumes", lambda c, box: c.Volume.create("name")),
    ("volume_connect", VolumeException, "Volumes", lambda c, box: c.Volume.connect("id")),
    ("volume_get_info", VolumeException, "Volumes", lambda c, box: c.Volume.get_info("id")),
    ("volume_list", VolumeException, "Volumes", lambda c, box: c.Volume.list()),
    ("volume_destroy", VolumeException, "Volumes", lambda c, box: c.Volume.destroy("id")),
    ("secret_create", SecretException, "Secrets", lambda c, box: c.Secret.create("name", "value")),
    ("secret_update", SecretException, "Secrets", lambda c, box: c.Secret.update("name", "value")),
    ("secret_get_info", SecretException, "Secrets", lambda c, box: c.Secret.get_info("name")),
    ("secret_exists", SecretException, "Secrets", lambda c, box: c.Secret.exists("name")),
    ("secret_list", SecretException, "Secrets", lambda c, box: c.Secret.list().next_items()),
    ("secret_destroy", SecretException, "Secrets", lambda c, box: c.Secret.destroy("name")),
    (
        "mcp",
        SandboxException,
        "mcp",
        lambda c, box: c.Sandbox.create(mcp={"browserbase": {"apiKey": "x", "geminiApiKey": "y", "projectId": "z"}}),
    ),
    (
        "iam",
        SandboxException,
        "iam",
        lambda c, box: c.Sandbox.create(iam={"tokens": {"a": {"audience": "x", "token_type": "JWT-SVID"}}}),
    ),
    ("volume_mounts", SandboxException, "volumeMounts", lambda c, box: c.Sandbox.create(volume_mounts={"/data": "v"})),
]
IDS = [each[0] for each in LATER]

SYNC = SimpleNamespace(Sandbox=Sandbox, Volume=Volume, Secret=Secret, Template=Template)
ASYNC = SimpleNamespace(Sandbox=AsyncSandbox, Volume=AsyncVolume, Secret=AsyncSecret, Template=AsyncTemplate)


def recipe(classes):
    return classes.Template().from_image("python:3").run_cmd("true")


@pytest.fixture(scope="module")
def box():
    box = Sandbox.create(timeout=120)
    yield box
    assert [each.sandbox_id for each in Sandbox.list().next_items()] == [box.sandbox_id]  # nothing was begun
    box.kill()


@pytest.mark.parametrize("name, exception, feature, call", LATER, ids=IDS)
def test_says_what_comes_later(box, name, exception, feature, call):
    with pytest.raises(exception, match=f"501: {feature} is not implemented yet"):
        call(SYNC, box)


@pytest.mark.parametrize("name, exception, feature, call", LATER, ids=IDS)
def test_says_what_comes_later_of_the_async_half(box, name, exception, feature, call):
    async def program():
        with pytest.raises(exception, match=f"501: {feature} is not implemented yet"):
            await call(ASYNC, await AsyncSandbox.connect(box.sandbox_id))

    asyncio.run(program())


def test_does_by_itself_what_needs_no_service(box):
    assert '"python:3"' in Template.to_json(recipe(SYNC))
    assert "FROM python:3" in Template.to_dockerfile(recipe(SYNC))
    assert "e2b.secrets.name" in Secret.fill("name")
    assert box.get_mcp_url() == f"https://{box.get_host(50005)}/mcp"


def test_knows_which_templates_there_are():
    assert Template.exists("base") is True
    assert Template.exists("no-such-template") is False
    assert Template.alias_exists("code-interpreter-v1") is True
