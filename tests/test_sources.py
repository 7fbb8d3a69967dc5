"""Folders and tar shards as sources: what is found, what is not, and damaged or remote shards."""

import functools
import gzip
import http.server
import io
import os
import pickle
import tarfile
import threading

import pytest

from dreamlit.datamodules.config_entries import ImageDataset
from dreamlit.datamodules.sources import LocalSource, open_source, stem_of
from dreamlit.errors import ConfigError, DataError


def shards(path, **keys) -> ImageDataset:
    return ImageDataset(id="d", type="webdataset", instance_data_dir=str(path), **keys)


def write_tar(path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def test_suffixes_of_any_case_are_found_and_junk_is_not(tmp_path):
    for name in ("B.JPG", "c.jpeg", "d.webp", "e.PNG", "._B.JPG", ".DS_Store", "Thumbs.db", "B.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "a.png").write_bytes(b"x")
    source = LocalSource(str(tmp_path))
    assert source.names() == ["B.JPG", "c.jpeg", "d.webp", "e.PNG"]
    assert {name for name, _ in source.ignored} == {"._B.JPG", ".DS_Store", "Thumbs.db", ".ipynb_checkpoints"}


def test_names_that_look_alike_are_kept_apart(tmp_path):
    names = ["x/a.jpg", "y/a.jpg", "x/a.png", "x/a_1.jpg", "x/a 1.jpg", "caf\u00e9.jpg", "cafe\u0301.jpg"]
    for i, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes([i]))
    source = LocalSource(str(tmp_path))
    if len(source.names()) < len(names):
        pytest.skip("this file system takes both spellings for one name")
    assert source.names() == sorted(names)
    assert [source.read(name) for name in names] == [bytes([i]) for i in range(len(names))]


def test_sidecar_is_found_by_stem_in_any_case_of_suffix(tmp_path):
    for name in ("a.b.jpg", "a.b.TXT", "a.txt", "c.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    source = LocalSource(str(tmp_path))
    assert source.sidecar("a.b.jpg", ".txt") == b"a.b.TXT"
    assert source.sidecar("c.jpg", ".txt") is None
    assert stem_of("x.y/a.b.jpg") == "x.y/a.b" and stem_of("x.y/a") == "x.y/a"


def test_link_loop_ends_and_linked_folders_are_read_once(tmp_path):
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "a.jpg").write_bytes(b"x")
    (tmp_path / "a").symlink_to(tmp_path / "z")
    (tmp_path / "z" / "up").symlink_to(tmp_path)
    source = LocalSource(str(tmp_path))
    assert source.names() == ["z/a.jpg"], "a folder keeps its own name, whatever its links are called"
    assert {name for name, _ in source.ignored} == {"a", "z/up"}


def test_linked_photos_and_folders_from_elsewhere_are_read(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jpg").write_bytes(b"far")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "set").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "b.jpg").symlink_to(tmp_path / "elsewhere" / "a.jpg")
    source = LocalSource(str(tmp_path / "photos"))
    assert source.names() == ["b.jpg", "set/a.jpg"]
    assert source.read("set/a.jpg") == source.read("b.jpg") == b"far"


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="gone does not exist"):
        LocalSource(str(tmp_path / "gone"))


def test_shards_are_read_by_offset_with_their_sidecars(tmp_path):
    for shard in range(3):
        files = {f"{shard}{i}.jpg": bytes([shard, i]) * 700 for i in range(4)}
        write_tar(tmp_path / f"s-{shard:03d}.tar", {**files, f"{shard}1.txt": b"a caption", f"{shard}.cls": b"7"})
    source = open_source(shards(tmp_path / "s-{000..002}.tar"))
    assert source.names() == [f"{shard}{i}.jpg" for shard in range(3) for i in range(4)]
    assert source.read("12.jpg") == bytes([1, 2]) * 700
    assert source.sidecar("21.jpg", ".txt") == b"a caption" and source.sidecar("22.jpg", ".txt") is None
    assert [name for name, _ in source.ignored] == ["0.cls", "1.cls", "2.cls"]
    assert open_source(shards(tmp_path)).names() == source.names(), "a folder of shards"
    assert open_source(shards(f"file://{tmp_path}/s-001.tar")).names() == [f"1{i}.jpg" for i in range(4)]
    copy = pickle.loads(pickle.dumps(source))
    assert copy.read("12.jpg") == source.read("12.jpg") and len(pickle.dumps(source)) < 1000


def test_folders_and_junk_in_a_shard_are_no_images(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for name, kind in (("x", tarfile.DIRTYPE), ("./x/a.jpg", tarfile.REGTYPE), ("link.jpg", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type = kind
            archive.addfile(member)
        archive.addfile(tarfile.TarInfo("x/._a.jpg"))
    source = open_source(shards(tmp_path / "s.tar"))
    assert source.names() == ["x/a.jpg"]
    assert [name for name, _ in source.broken] == ["link.jpg"] and [name for name, _ in source.ignored] == ["x/._a.jpg"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:1500], "cut off"),
        (lambda data: data[: 3 * 1024 + 512 + 50], "damaged"),
        (lambda data: data[:2048], "cut off or damaged after 2 members"),
        (lambda data: b"", "damaged"),
        (lambda data: b"<html>" * 500, "damaged"),
        (lambda data: data[:1024] + b"\xff" * 512 + data[1536:], "cut off or damaged after 1 members"),
        (lambda data: data + data, "goes on after its end mark"),
        (gzip.compress, "compressed; unpack it"),
    ],
)
def test_damaged_shard_is_refused_and_named(tmp_path, damage, words):
    write_tar(tmp_path / "good.tar", {f"{i}.jpg": b"x" * 100 for i in range(4)})
    (tmp_path / "bad.tar").write_bytes(damage((tmp_path / "good.tar").read_bytes()))
    with pytest.raises(DataError, match=rf"(?s)bad\.tar.*{words}"):
        open_source(shards(tmp_path / "bad.tar")).names()


def test_same_name_in_two_shards_is_refused(tmp_path):
    for shard in "ab":
        write_tar(tmp_path / f"{shard}.tar", {"1.jpg": b"x"})
    with pytest.raises(DataError, match=r"1\.jpg is both in .*a\.tar and in .*b\.tar"):
        open_source(shards(tmp_path / "{a,b}.tar")).names()


def test_all_missing_shards_are_in_one_report(tmp_path):
    write_tar(tmp_path / "s-1.tar", {"1.jpg": b"x"})
    with pytest.raises(DataError) as caught:
        open_source(shards(tmp_path / "s-{0..2}.tar"))
    assert "s-0.tar" in str(caught.value) and "s-2.tar" in str(caught.value) and "s-1.tar: no" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "words"), [("pipe:cat x.tar", "no shell"), ("s3://b/x.tar", "s3"), ("a{0..1", "range")]
)
def test_other_urls_and_broken_ranges_are_refused(url, words):
    with pytest.raises(ConfigError, match=words):
        open_source(shards(url))


class Handler(http.server.SimpleHTTPRequestHandler):
    """Counts requests, answers one in short and fails on another."""

    requests: list[str]

    def do_GET(self):
        self.requests.append(self.path)
        if "short" in self.path:
            self.send_response(200)
            self.send_header("Content-Length", "9999")
            self.end_headers()
            self.wfile.write(b"x" * 10)
        else:
            super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    """A web server on this machine over `tmp_path / "web"`: (address, requested paths)."""
    (tmp_path / "web").mkdir()
    Handler.requests = []
    handler = functools.partial(Handler, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}", Handler.requests
        httpd.shutdown()


def test_remote_shards_are_fetched_once_and_kept_outside_the_data(server, tmp_path):
    address, requests = server
    for shard in range(2):
        write_tar(tmp_path / "web" / f"s-{shard}.tar", {f"{shard}.jpg": b"data"})
    for _ in range(2):
        source = open_source(shards(f"{address}/s-{{0..1}}.tar"), tmp_path / "cache")
        assert source.names() == ["0.jpg", "1.jpg"] and source.read("1.jpg") == b"data"
    assert sorted(requests) == ["/s-0.tar", "/s-1.tar"]
    assert len(os.listdir(tmp_path / "cache")) == 2


def test_failed_downloads_are_in_one_report_and_leave_nothing_behind(server, tmp_path):
    address, requests = server
    with pytest.raises(DataError) as caught:
        open_source(shards(f"{address}/{{short,gone}}.tar"), tmp_path / "cache")
    text = str(caught.value)
    assert "got 10 of 9999 bytes" in text and "after 3 attempts" in text
    assert "404" in text and requests.count("/gone.tar") == 1, "asking again for a missing file is useless"
    assert os.listdir(tmp_path / "cache") == []


def test_remote_shards_need_a_place_to_keep_them():
    with pytest.raises(DataError, match="cache_dir"):
        open_source(shards("http://127.0.0.1:1/a.tar"))
