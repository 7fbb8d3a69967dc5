"""The shard store: what is written is read back, whatever happens to the process, the disk or the file meanwhile."""

import contextlib
import errno
import hashlib
import multiprocessing
import os
import pickle
import random
import signal
import time

import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dreamlit.datamodules import cache_tools, shards
from dreamlit.datamodules.shard_format import digest, index_path, scan, shard_paths
from dreamlit.datamodules.shard_parts import Part, leftovers, recover
from dreamlit.datamodules.shards import ShardFolder
from dreamlit.errors import DataError

FORK = multiprocessing.get_context("fork")


def key_of(name):
    return hashlib.blake2b(str(name).encode(), digest_size=16).hexdigest()


def data_of(name, size=3000):
    return random.Random(str(name)).randbytes(size)


def fill(folder, names, **limits):
    store = ShardFolder(folder)
    with store.writer(**limits) as writer:
        for name in names:
            writer.add(key_of(name), data_of(name))
    return store


def content(folder):
    store = ShardFolder(folder)
    return {key: store.read(key) for key in sorted(store.keys())}


def expected(names):
    return {key_of(name): data_of(name) for name in names}


def in_child(work, *args):
    process = FORK.Process(target=work, args=args)
    process.start()
    return process


# --- writing and reading --------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    entries=st.dictionaries(st.integers(), st.binary(max_size=1500), max_size=12),
    max_entries=st.integers(1, 5),
    max_bytes=st.integers(1, 8000),
)
def test_every_entry_is_read_back_however_it_is_cut_into_shards(tmp_path_factory, entries, max_entries, max_bytes):
    folder = tmp_path_factory.mktemp("store")
    with ShardFolder(folder).writer(max_entries, max_bytes) as writer:
        for name, data in entries.items():
            writer.add(key_of(name), data)
    assert content(folder) == {key_of(name): data for name, data in entries.items()}
    assert len(shard_paths(folder)) >= len(entries) / max_entries


def test_reading_a_folder_that_does_not_exist_finds_nothing_and_creates_nothing(tmp_path):
    store = ShardFolder(tmp_path / "none")
    assert store.read(key_of(1)) is None and store.missing([key_of(1)]) == [key_of(1)]
    with store.writer():
        pass
    assert not (tmp_path / "none").exists()


def test_webdataset_reads_a_shard(tmp_path):
    fill(tmp_path, range(5))
    (shard,) = shard_paths(tmp_path)
    read = {item["__key__"]: item["safetensors"] for item in webdataset.WebDataset(str(shard), shardshuffle=False)}
    assert read == expected(range(5))


def test_a_full_shard_can_be_read_while_the_writer_goes_on(tmp_path):
    store = ShardFolder(tmp_path)
    with store.writer(max_entries=2) as writer:
        for name in range(3):
            writer.add(key_of(name), data_of(name))
        assert [key_of(name) in store for name in range(3)] == [True, True, False]
    assert key_of(2) in store


def test_a_reader_sees_new_shards_after_refresh(tmp_path):
    reader = ShardFolder(tmp_path)
    fill(tmp_path, [1])
    assert key_of(1) not in reader
    reader.refresh()
    assert reader.read(key_of(1)) == data_of(1)


def test_a_store_can_be_pickled_and_read_in_a_forked_process(tmp_path):
    store = fill(tmp_path, range(3))
    assert pickle.loads(pickle.dumps(store)).read(key_of(2)) == data_of(2)

    def child():
        os._exit(0 if store.read(key_of(1)) == data_of(1) else 1)

    process = in_child(child)
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_entries_written_before_an_exception_are_kept(tmp_path, error):
    def interrupted():
        yield 1
        raise error

    with pytest.raises(error):
        fill(tmp_path, interrupted())
    assert content(tmp_path) == expected([1])


def test_a_key_that_is_not_hexadecimal_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.\./x"), ShardFolder(tmp_path).writer() as writer:
        writer.add("../x", b"")


def test_a_duplicate_in_a_later_shard_changes_nothing(tmp_path):
    fill(tmp_path, range(3))
    fill(tmp_path, range(2, 5))
    assert content(tmp_path) == expected(range(5))


# --- damage ---------------------------------------------------------------------------------------------------------


def spoil(path, position, length=4):
    with open(path, "r+b") as file:
        file.seek(position)
        old = file.read(length)
        file.seek(position)
        file.write(bytes(255 - byte for byte in old))


@pytest.mark.parametrize("index", ["kept", "removed", "emptied", "cut", "of another tar"])
def test_a_missing_or_damaged_index_is_made_again(tmp_path, index):
    fill(tmp_path, range(6), max_entries=4)
    first, second = map(index_path, shard_paths(tmp_path))
    whole = first.read_bytes()
    if index == "removed":
        first.unlink()
    elif index != "kept":
        first.write_bytes({"emptied": b"", "cut": whole[:-40], "of another tar": second.read_bytes()}[index])
    assert content(tmp_path) == expected(range(6))
    assert first.read_bytes() == whole


def test_no_flipped_byte_goes_unnoticed(tmp_path):
    """A flip anywhere in a shard, with or without its index: each entry is right or missing, never wrong."""
    fill(tmp_path, range(4))
    (shard,) = shard_paths(tmp_path)
    whole, index = shard.read_bytes(), index_path(shard).read_bytes()
    for trial in range(60):
        shard.write_bytes(whole)
        index_path(shard).write_bytes(index)
        spoil(shard, random.Random(trial).randrange(len(whole) - 4), 1 + trial % 4)
        if trial % 2:
            index_path(shard).unlink()
        store = ShardFolder(tmp_path)
        for name in range(4):
            assert store.read(key_of(name)) in (data_of(name), None)
        assert len(store.missing(map(key_of, range(4)))) <= (4 if trial % 2 else 2)


def test_a_damaged_entry_counts_as_missing_and_is_rebuilt(tmp_path):
    fill(tmp_path, range(4))
    (shard,) = shard_paths(tmp_path)
    spoil(shard, scan(shard)[key_of(2)].offset + 100)
    store = ShardFolder(tmp_path)
    assert store.missing(map(key_of, range(4))) == [key_of(2)]
    assert key_of(2) not in store
    with store.writer() as writer:
        writer.add(key_of(2), data_of(2))
    assert store.read(key_of(2)) == data_of(2)
    assert content(tmp_path) == expected(range(4))


@pytest.mark.parametrize("cut", [1, 1024, 5000, 12000])
def test_a_truncated_shard_loses_only_what_was_cut_off(tmp_path, cut):
    fill(tmp_path, range(4))
    (shard,) = shard_paths(tmp_path)
    size = shard.stat().st_size - cut
    whole = [name for name in range(4) if sum(scan(shard)[key_of(name)][:2]) <= size]
    os.truncate(shard, size)
    store = ShardFolder(tmp_path)
    assert set(store.missing(map(key_of, range(4)))) == {key_of(name) for name in range(4) if name not in whole}


def test_a_shard_removed_under_a_reader_is_found_where_it_went(tmp_path):
    reader = fill(tmp_path, range(4))
    cache_tools.gc(tmp_path, {key_of(1)})
    assert reader.read(key_of(1)) == data_of(1)
    assert reader.read(key_of(2)) is None


# --- a full or read-only disk -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_is_a_clear_error_and_loses_nothing(tmp_path, monkeypatch, code):
    pwrite, room = os.pwrite, [10000]

    def limited(fd, data, offset):
        if room[0] <= 0:
            raise OSError(code, os.strerror(code))
        written = pwrite(fd, bytes(data)[: room[0]], offset)
        room[0] -= written
        return written

    monkeypatch.setattr(shards.os, "pwrite", limited)
    said = "disk is full" if code != errno.EIO else "cannot be written"
    with pytest.raises(DataError, match=said) as caught:
        fill(tmp_path, range(9))
    assert str(tmp_path) in str(caught.value) and "so far: 2" in str(caught.value) and "cache_dir" in str(caught.value)
    monkeypatch.undo()
    assert content(tmp_path) == expected(range(2))
    assert cache_tools.verify(tmp_path).ok and not leftovers(tmp_path)


def test_a_disk_that_fails_when_the_shard_is_completed_leaves_it_to_the_next_run(tmp_path, monkeypatch):
    def failing(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shards.os, "fsync", failing)
    with pytest.raises(DataError, match="disk is full"):
        fill(tmp_path, range(3))
    monkeypatch.undo()
    assert content(tmp_path) == {}
    assert recover(tmp_path) == 3
    assert content(tmp_path) == expected(range(3))


def test_a_cache_folder_that_is_a_file_is_a_clear_error(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(DataError, match="cache"):
        fill(tmp_path / "cache", [1])


# --- killed writers ---------------------------------------------------------------------------------------------------


def slow_fill(folder, names, max_entries, started):
    store = ShardFolder(folder)
    recover(store.folder)
    store.refresh()
    missing = set(store.missing(map(key_of, names)))
    with store.writer(max_entries=max_entries) as writer:
        for name in names:
            if key_of(name) in missing:
                writer.add(key_of(name), data_of(name))
                started.set()
                time.sleep(0.002)
    started.set()


def test_kill_nine_at_any_moment_shows_no_half_entry_and_loses_at_most_the_one_in_hand(tmp_path):
    names, rng, before = range(150), random.Random(7), 0
    for _ in range(10):
        started = FORK.Event()
        process = in_child(slow_fill, tmp_path, names, 7, started)
        started.wait(10)
        time.sleep(rng.uniform(0, 0.03))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        seen = content(tmp_path)
        assert seen.items() <= expected(names).items()
        recover(tmp_path)
        seen = content(tmp_path)
        assert seen.items() <= expected(names).items()
        assert before < len(seen) or len(seen) == len(names)
        before = len(seen)
    slow_fill(tmp_path, names, 7, FORK.Event())
    assert content(tmp_path) == expected(names)
    assert not [path for path in tmp_path.iterdir() if ".part" in path.name]
    assert cache_tools.verify(tmp_path).ok


def test_a_part_cut_inside_its_last_entry_keeps_the_others(tmp_path):
    part = Part.create(tmp_path)
    for name in range(3):
        part.append(key_of(name), data_of(name))
    os.truncate(part.path, part.end - 700)
    os.close(part.fd)
    assert recover(tmp_path) == 2
    assert content(tmp_path) == expected(range(2))
    (shard,) = shard_paths(tmp_path)
    record_bytes = part.end // 3
    assert shard.stat().st_size == 2 * record_bytes + 1024  # nothing of the third is left before the end mark


def test_the_part_of_a_living_writer_is_left_alone(tmp_path):
    with ShardFolder(tmp_path).writer() as writer:
        writer.add(key_of(1), data_of(1))
        assert leftovers(tmp_path) == [] and recover(tmp_path) == 0
        process = in_child(recover, tmp_path)
        process.join()
        writer.add(key_of(2), data_of(2))
    assert content(tmp_path) == expected([1, 2])


def test_an_old_index_without_a_shard_is_removed_and_a_new_one_is_not(tmp_path):
    fill(tmp_path, [1])
    (shard,) = shard_paths(tmp_path)
    shard.unlink()
    assert recover(tmp_path) == 0 and index_path(shard).exists()
    os.utime(index_path(shard), (0, 0))
    recover(tmp_path)
    assert not index_path(shard).exists()


def write_range(folder, first, last):
    for name in range(first, last):
        recover(folder)
        fill(folder, [name, name + 1])


def test_processes_that_fill_one_folder_at_once_do_not_corrupt_it(tmp_path):
    processes = [in_child(write_range, tmp_path, first, first + 12) for first in (0, 4, 8, 12)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert content(tmp_path) == expected(range(25))
    assert cache_tools.verify(tmp_path).ok and not list(tmp_path.glob("*.part"))


# --- verify and gc ----------------------------------------------------------------------------------------------------


def test_verify_names_what_is_damaged_and_changes_nothing(tmp_path):
    fill(tmp_path, range(4), max_entries=2)
    first, second = shard_paths(tmp_path)
    spoil(first, scan(first)[key_of(0)].offset)
    index_path(second).unlink()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    report = cache_tools.verify(tmp_path)
    assert not report.ok and report.entries == 4 and len(report.damaged) == 1
    assert first.name in str(report) and key_of(0) in str(report) and index_path(second).name in str(report)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("cut", [1100, 9000])
def test_verify_reports_what_a_truncated_shard_lost(tmp_path, cut):
    fill(tmp_path, range(4))
    (shard,) = shard_paths(tmp_path)
    os.truncate(shard, shard.stat().st_size - cut)
    report = cache_tools.verify(tmp_path)
    lost = {key_of(name) for name in range(4)} - scan(shard).keys()
    assert lost and all(key in str(report) for key in lost) and len(report.damaged) == len(lost)


def test_verify_finds_tar_headers_that_only_other_tools_need(tmp_path):
    fill(tmp_path, range(3))
    (shard,) = shard_paths(tmp_path)
    spoil(shard, scan(shard)[key_of(1)].offset - 512, 100)
    assert content(tmp_path) == expected(range(3))
    assert "other tools" in str(cache_tools.verify(tmp_path))


def foreign_files(folder):
    foreign = {"photo.jpg": b"1", "other.tar": b"2", "dreamlit-notes.tar": b"3", "x.index": b"4", "y.tar.part": b"5"}
    for name, data in foreign.items():
        (folder / name).write_bytes(data)
        os.utime(folder / name, (0, 0))
    return foreign


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shards=st.lists(st.sets(st.integers(0, 9), max_size=5), max_size=4), keep=st.sets(st.integers(0, 9), min_size=1))
def test_gc_keeps_exactly_what_is_named_and_foreign_files(tmp_path_factory, shards, keep):
    folder = tmp_path_factory.mktemp("gc")
    foreign = foreign_files(folder)
    for names in shards:
        fill(folder, sorted(names))
    there = set().union(*shards)
    keys = {key_of(name) for name in keep}
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    listed = cache_tools.gc(folder, keys, dry_run=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    done = cache_tools.gc(folder, keys)
    assert done.removed == listed.removed and done.kept == len(there & keep)
    assert content(folder) == expected(there & keep)
    assert {name: (folder / name).read_bytes() for name in foreign} == foreign
    assert cache_tools.gc(folder, keys).removed == []


def test_gc_without_anything_to_keep_is_refused(tmp_path):
    fill(tmp_path, range(2))
    with pytest.raises(DataError, match="nothing was named to keep"):
        cache_tools.gc(tmp_path, set())
    assert content(tmp_path) == expected(range(2))


def test_gc_removes_damaged_entries_and_keeps_the_good_copy(tmp_path):
    fill(tmp_path, range(3))
    (shard,) = shard_paths(tmp_path)
    spoil(shard, scan(shard)[key_of(0)].offset)
    fill(tmp_path, [0])
    report = cache_tools.gc(tmp_path, set(map(key_of, range(3))))
    assert [removal.reason for removal in report.removed] == ["damaged"]
    assert content(tmp_path) == expected(range(3)) and cache_tools.verify(tmp_path).ok


def test_gc_leaves_a_shard_that_is_being_written(tmp_path):
    fill(tmp_path, [0])
    with ShardFolder(tmp_path).writer() as writer:
        writer.add(key_of(1), data_of(1))
        cache_tools.gc(tmp_path, {key_of(0)})
    assert content(tmp_path) == expected([0, 1])


def test_gc_on_a_full_disk_removes_nothing(tmp_path, monkeypatch):
    fill(tmp_path, range(3))

    def failing(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shards.os, "pwrite", failing)
    with pytest.raises(DataError, match="disk is full"):
        cache_tools.gc(tmp_path, {key_of(1)})
    monkeypatch.undo()
    assert content(tmp_path) == expected(range(3))


@pytest.mark.parametrize("tool", [cache_tools.verify, lambda folder: cache_tools.gc(folder, {"a" * 8})])
def test_tools_refuse_a_folder_that_is_not_there(tmp_path, tool):
    with pytest.raises(DataError, match="no such folder"):
        tool(tmp_path / "none")


def test_checksums_are_of_the_bytes(tmp_path):
    fill(tmp_path, [1])
    (shard,) = shard_paths(tmp_path)
    assert scan(shard)[key_of(1)].checksum == digest(data_of(1)) != digest(data_of(2))
    with contextlib.suppress(FileNotFoundError):
        index_path(shard).unlink()
    assert content(tmp_path) == expected([1])
