"""Atomic files and folders, and what killed makers left."""

import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest

from hpc_hipgen import files
from hpc_hipgen.files import (
    DamagedError,
    atomic_folder,
    clean_abandoned,
    local_locks,
    overlapped,
    read_json,
    reading_export,
    remove_folder,
    resumed_folder,
    write_atomic,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("beegfs_nodev {} beegfs rw,relatime 0 0", "beegfs"),
        ("10.0.0.1@o2ib:/scratch {} lustre rw,localflock 0 0", "lustre"),
        ("10.0.0.1@o2ib:/scratch {} lustre rw,flock,lazystatfs 0 0", ""),
        ("home:/home {} nfs4 rw,local_lock=none 0 0", ""),
    ],
)
def test_a_file_system_whose_locks_hold_on_one_node_only_is_known(tmp_path, line, kind):
    results = tmp_path / "my results"
    results.mkdir()
    point = str(results).replace(" ", r"\040")
    mounts = tmp_path / "mounts"
    others = "beegfs_nodev / beegfs rw 0 0", "proc /proc proc rw 0 0"
    mounts.write_text("\n".join((others[0], line.format(point), others[1])))
    assert local_locks(results / "llcm", mounts) == kind
    assert local_locks(tmp_path, mounts) == "beegfs"
    assert local_locks(results, tmp_path / "nowhere") == ""


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "new" / "a.json"
    write_atomic(path, "first")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError):
        write_atomic(path, b"second")
    assert path.read_text() == "first" and names(path.parent) == ["a.json"]


def test_files_have_the_rights_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "a", "x")
        with atomic_folder(tmp_path / "f") as folder:
            (folder / "b").touch()
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o750


def test_a_folder_replaces_the_older_one_or_changes_nothing(tmp_path):
    target = tmp_path / "export"
    for content in ("one", "two"):
        with atomic_folder(target) as folder:
            (folder / content).write_text(content)
            assert not (target / content).exists()
    assert names(target) == ["two"]
    with pytest.raises(KeyboardInterrupt), atomic_folder(target) as folder:
        (folder / "three").touch()
        raise KeyboardInterrupt
    assert names(target) == ["two"] and names(tmp_path) == ["export"]


def killed_while(write, *arguments):
    """A process that ends without any clean-up, as by SIGKILL, in the middle of `write`."""

    def work():
        os.replace = lambda *_: os._exit(9)
        write(*arguments)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == 9


def replace_folder(path, content):
    with atomic_folder(path) as folder:
        (folder / content).touch()


def test_what_a_killed_process_left_goes_when_the_artefact_is_made_again(tmp_path):
    killed_while(write_atomic, tmp_path / "a", "x")
    killed_while(write_atomic, tmp_path / "never again", "x")
    killed_while(replace_folder, tmp_path / "f", "one")
    assert len(names(tmp_path)) == 2, "the second process removed what the first had left"
    write_atomic(tmp_path / "a", "y")
    replace_folder(tmp_path / "f", "two")
    assert names(tmp_path) == ["a", "f"] and names(tmp_path / "f") == ["two"]


def test_a_file_that_is_in_place_leaves_nothing_more_to_clean(tmp_path):
    replace = os.replace

    def then_killed(source, to):
        replace(source, to)
        os._exit(9)

    process = multiprocessing.get_context("fork").Process(
        target=lambda: (setattr(os, "replace", then_killed), write_atomic(tmp_path / "a", "x"))
    )
    process.start()
    process.join()
    assert process.exitcode == 9 and names(tmp_path) == ["a"]


def test_what_a_living_process_makes_is_left_alone(tmp_path):
    with atomic_folder(tmp_path / "f") as folder:
        (folder / "mine").touch()
        replace_folder(tmp_path / "f", "other")
        clean_abandoned(tmp_path)
        assert names(folder) == ["mine"] and names(tmp_path / "f") == ["other"]
    assert names(tmp_path) == ["f"] and names(tmp_path / "f") == ["mine"]


def test_a_file_that_a_living_process_writes_is_left_alone(tmp_path, monkeypatch):
    replace = os.replace

    def meanwhile_cleaned(source, to):
        clean_abandoned(tmp_path)
        replace(source, to)

    monkeypatch.setattr(os, "replace", meanwhile_cleaned)
    write_atomic(tmp_path / "a", "x")
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "x"


def test_hidden_files_of_other_programs_are_left_alone(tmp_path):
    for name in (".notes.txt.tmp", ".syncthing.a.tmp", ".a.12345678901.tmp"):
        (tmp_path / name).touch()
    clean_abandoned(tmp_path)
    write_atomic(tmp_path / "a", "x")
    assert len(list(tmp_path.iterdir())) == 4


def test_an_older_folder_comes_back_when_its_successor_did_not_arrive(tmp_path, monkeypatch):
    replace, target = os.replace, tmp_path / "f"
    replace_folder(target, "one")

    def second_fails(source, to):
        if Path(source).name == "f" and Path(to) == target and Path(source) != target:
            raise OSError("gone")
        replace(source, to)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(OSError, match="gone"):
        replace_folder(target, "two")
    assert names(tmp_path) == ["f"] and names(target) == ["one"]


def test_a_folder_is_removed_whole(tmp_path):
    replace_folder(tmp_path / "f", "one")
    remove_folder(tmp_path / "f")
    assert names(tmp_path) == []


def test_what_a_folder_holds_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    own, target, synced = os.fsync, tmp_path / "export", []

    def note(handle):
        synced.append((os.fstat(handle).st_ino, target.exists()))
        own(handle)

    monkeypatch.setattr(os, "fsync", note)
    with atomic_folder(target) as folder:
        (folder / "weights").write_text("x")
        inode = (folder / "weights").stat().st_ino
    assert (inode, False) in synced and (tmp_path.stat().st_ino, True) in synced


@pytest.mark.parametrize("content", [b"", b'{"images": 8', b"[]", b"\xff\xfe", b"null"])
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, content):
    path = tmp_path / "train-llcm.json"
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=f"^{path}: damaged; remove it and start again$"):
        read_json(path)
    path.write_text('{"images": 8}')
    assert read_json(path) == {"images": 8}


def test_an_export_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DamagedError, match=f"^{tmp_path}: damaged or incomplete .no file of it"):
        with reading_export(tmp_path):
            raise OSError("no file\nof it")
    with pytest.raises(RuntimeError), reading_export(tmp_path):
        raise RuntimeError("the GPU is out of memory")


def test_without_locks_nothing_is_left_to_go_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "lock", lambda file: None)
    with resumed_folder(tmp_path / "data", "key", ValueError) as (content, notes):
        (content / "file").write_text("x")
        assert not list(notes.iterdir())
    assert names(tmp_path) == ["data"] and names(tmp_path / "data") == ["file"]


def test_overlapped_work_overlaps():
    both = threading.Barrier(2, timeout=30)
    assert list(overlapped(lambda number: both.wait() * 0 + number, range(2))) == [0, 1]


def test_overlapped_work_keeps_its_order_and_does_not_run_far_ahead():
    begun = []

    def work(number):
        begun.append(number)
        time.sleep(0.002 * (number % 3))
        if number == 700:
            raise OSError("a full disk")
        return -number

    results = overlapped(work, iter(range(1000)))
    assert [next(results) for _ in range(5)] == [0, -1, -2, -3, -4]
    assert len(begun) < 100
    with pytest.raises(OSError, match="a full disk"):
        list(results)
    assert max(begun) < 800 and list(overlapped(work, [])) == []
