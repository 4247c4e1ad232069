"""Files and watching through the synchronous half of the official Python SDK."""

import datetime
import io
import os

import pytest
from e2b import FileType, FilesystemEventType
from e2b_code_interpreter import FileNotFoundException, InvalidArgumentException, Sandbox, SandboxException

DOCKER = os.environ["CELLBOX_TEST_RUNTIME"] == "docker"
HOME = "/home/user"


@pytest.fixture(scope="module")
def box():
    box = Sandbox.create(timeout=600)
    yield box
    box.kill()


def test_writes_and_reads_every_kind_of_data(box):
    info = box.files.write("a/b/ü c.txt", "text")
    assert (info.name, info.path) == ("ü c.txt", f"{HOME}/a/b/ü c.txt")
    assert box.files.read("a/b/ü c.txt") == "text"
    data = os.urandom(300_000)
    box.files.write("binary", data)
    assert bytes(box.files.read("binary", format="bytes")) == data
    assert b"".join(box.files.read("binary", format="stream")) == data
    box.files.write("binary", io.BytesIO(data))
    assert bytes(box.files.read("binary", format="bytes")) == data
    box.files.write("text", io.StringIO("from a text stream"))
    assert box.files.read("text") == "from a text stream"
    box.files.write("empty", "")
    assert box.files.read("empty") == ""
    assert bytes(box.files.read("empty", format="bytes")) == b""


@pytest.mark.parametrize("how", [{"gzip": True}, {"use_octet_stream": True}])
def test_writes_and_reads_in_every_manner(box, how):
    data = os.urandom(300_000)
    box.files.write("manner", data, **how)
    assert bytes(box.files.read("manner", format="bytes")) == data
    assert bytes(box.files.read("manner", format="bytes", gzip=True)) == data


def test_writes_several_files_in_order(box):
    infos = box.files.write_files(
        [
            {"path": "many/one", "data": "one"},
            {"path": "many/two", "data": b"two"},
            {"path": "many/three", "data": io.BytesIO(b"three")},
        ]
    )
    assert [each.path for each in infos] == [f"{HOME}/many/{name}" for name in ("one", "two", "three")]
    assert [box.files.read(each.path) for each in infos] == ["one", "two", "three"]


def test_keeps_metadata_until_it_is_overwritten(box):
    metadata = {"author": "ada", "purpose": "test data"}
    assert box.files.write("meta/a", "x", metadata=metadata).metadata == metadata
    assert box.files.get_info("meta/a").metadata == metadata
    assert box.files.list("meta")[0].metadata == metadata
    assert box.files.rename("meta/a", "meta/b").metadata == metadata
    assert box.files.write("meta/b", "y").metadata is None
    assert box.files.get_info("meta/b").metadata is None
    program = 'import os; os.setxattr("/home/user/meta/b", "user.e2b.author", b"eve")'
    if DOCKER:
        box.commands.run(f"python3 -c '{program}'")
        assert box.files.get_info("meta/b").metadata == {"author": "eve"}


def test_tells_everything_about_an_entry(box):
    box.files.write("info/file.txt", "four")
    info = box.files.get_info("info/file.txt")
    assert (info.name, info.type, info.path) == ("file.txt", FileType.FILE, f"{HOME}/info/file.txt")
    assert (info.size, info.mode, info.permissions) == (4, 0o644, "-rw-r--r--")
    assert info.modified_time.tzinfo is not None
    assert abs(info.modified_time - datetime.datetime.now(datetime.timezone.utc)) < datetime.timedelta(minutes=1)
    if DOCKER:
        assert (info.owner, info.group) == ("user", "user")
    directory = box.files.get_info("info")
    assert (directory.type, directory.permissions) == (FileType.DIR, "drwxr-xr-x") and directory.size > 0
    box.commands.run("ln -sf ~/info/file.txt ~/info/link")
    link = box.files.get_info("info/link")
    assert (link.type, link.symlink_target) == (FileType.FILE, f"{HOME}/info/file.txt")
    with pytest.raises(FileNotFoundException):
        box.files.get_info("no-such-file")
    with pytest.raises(FileNotFoundException):
        box.files.read("no-such-file")


def test_lists_in_order_as_deep_as_asked(box):
    for path in ("tree/b/2", "tree/b/1", "tree/a/x/deep", "tree/c"):
        box.files.write(path, "")

    def names(**depth):
        return [each.path[len(f"{HOME}/tree/") :] for each in box.files.list("tree", **depth)]

    assert names() == ["a", "b", "c"]
    assert names(depth=2) == ["a", "a/x", "b", "b/1", "b/2", "c"]
    assert names(depth=3) == ["a", "a/x", "a/x/deep", "b", "b/1", "b/2", "c"]
    with pytest.raises(InvalidArgumentException):
        box.files.list("tree", depth=0)


def test_makes_renames_and_removes(box):
    assert box.files.make_dir("made/deep") is True
    assert box.files.make_dir("made/deep") is False
    box.files.write("made/deep/file", "content")
    assert box.files.rename("made/deep/file", "moved/file").path == f"{HOME}/moved/file"
    assert box.files.exists("made/deep/file") is False
    assert box.files.read("moved/file") == "content"
    box.files.remove("moved")
    box.files.remove("moved")
    assert box.files.exists("moved") is False
    with pytest.raises(FileNotFoundException):
        box.files.rename("no-such-file", "x")


def test_signs_urls_of_a_secured_sandbox():
    import httpx

    box = Sandbox.create(timeout=120, secure=True)
    headers = {"E2b-Sandbox-Id": box.sandbox_id, "E2b-Sandbox-Port": "49983"}
    box.files.write("hello.txt", "hello")
    good = httpx.get(box.download_url("hello.txt", use_signature_expiration=60), headers=headers)
    assert (good.status_code, good.text) == (200, "hello")
    expired = httpx.get(box.download_url("hello.txt", use_signature_expiration=-10), headers=headers)
    assert expired.status_code == 401
    assert expired.json() == {"code": 401, "message": "signature is already expired"}
    uploaded = httpx.post(box.upload_url("up.txt"), headers=headers, files={"file": ("up.txt", b"up")})
    assert uploaded.json() == [{"name": "up.txt", "path": f"{HOME}/up.txt", "type": "file"}]
    assert box.files.read("up.txt") == "up"
    box.kill()


def test_collects_events_until_asked(box):
    box.files.make_dir("watched")
    handle = box.files.watch_dir("watched")
    box.files.write("watched/file", "content")
    events = handle.get_new_events()
    assert [(each.type, each.name) for each in events] == [
        (FilesystemEventType.CREATE, "file"),
        (FilesystemEventType.CHMOD, "file"),
        (FilesystemEventType.WRITE, "file"),
    ]
    assert handle.get_new_events() == []
    box.files.rename("watched/file", "watched/other")
    assert [(each.type, each.name) for each in handle.get_new_events()] == [
        (FilesystemEventType.RENAME, "file"),
        (FilesystemEventType.CREATE, "other"),
    ]
    handle.stop()
    with pytest.raises(SandboxException):
        handle.get_new_events()


def test_watches_whole_trees(box):
    box.files.make_dir("watched-tree/sub")
    handle = box.files.watch_dir("watched-tree", recursive=True, include_entry=True)
    box.files.write("watched-tree/sub/file", "x")
    events = handle.get_new_events()
    assert (events[0].type, events[0].name) == (FilesystemEventType.CREATE, "sub/file")
    assert events[0].entry.path == f"{HOME}/watched-tree/sub/file"
    box.files.write("watched-tree/new/file", "x")
    seen = {(each.type, each.name) for each in handle.get_new_events()}
    assert (FilesystemEventType.CREATE, "new") in seen
    handle.stop()
    with pytest.raises(FileNotFoundException):
        box.files.watch_dir("no-such-dir")
    with pytest.raises(SandboxException):
        box.files.watch_dir("watched/other")
