from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import stat

import pytest

from yolof_d2.files import replacing, write_text


def test_readers_see_the_old_content_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as file:
        file.write(b"ne")
        file.flush()
        assert path.read_text() == "old"
        file.write(b"w")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


def test_folders_are_made_and_text_is_utf8(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    write_text(path, "ü\n")
    assert path.read_bytes() == "ü\n".encode()


@pytest.mark.parametrize("exception", [ValueError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, exception):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(exception), replacing(path) as file:
        file.write(b"new")
        raise exception
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def _write_too_much(path):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    with pytest.raises(OSError):
        write_text(path, "x" * 100_000)


def test_so_does_one_that_the_system_refuses(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    process = multiprocessing.get_context("fork").Process(target=_write_too_much, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("durable", [True, False])
def test_a_durable_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch, durable):
    path, synced = tmp_path / "file", []

    def fsync(number):
        status = os.fstat(number)
        synced.append(("folder" if stat.S_ISDIR(status.st_mode) else status.st_size, path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(path, "new", durable=durable)
    assert synced == ([(3, False), ("folder", True)] if durable else [])


def test_two_processes_that_write_at_once_do_not_share_a_file(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as file:
        file.write(b"mine")
        other = multiprocessing.get_context("fork").Process(target=write_text, args=(path, "its"))
        other.start()
        other.join()
        assert (other.exitcode, path.read_text()) == (0, "its")
    assert path.read_text() == "mine"
