"""Records are written whole or not at all."""

from __future__ import annotations

import json
import multiprocessing
import os
import time

import pytest

from experiments.errors import ExperimentError, RecordError
from experiments.store.record_files import locked, now, read_record, seconds, write_record
from experiments.store.records import Record
from tests.waiting import wait_until


class Note(Record):
    """A record."""

    text: str
    number: int = 0


def test_a_record_comes_back_with_its_format(tmp_path):
    path = tmp_path / "deep" / "record.json"
    write_record(path, Note(text="é", number=3))
    assert json.loads(path.read_text()) == {"format": 1, "text": "é", "number": 3}
    assert read_record(path, Note) == Note(text="é", number=3)
    assert read_record(tmp_path / "absent.json", Note) is None
    assert os.listdir(path.parent) == ["record.json"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"format": 1, "a"', "is damaged (not JSON"),
        ("", "is damaged (not JSON"),
        ("[1]", "expected an object, got list"),
        ('{"format": 99}', "has format 99, this version reads format 1"),
        ('{"text": "a"}', "has format None"),
        ('{"format": 1}', "text: Field required"),
        ('{"format": 1, "text": "a", "number": "many"}', "number: Input should be a valid integer"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path, content, words):
    path = tmp_path / "record.json"
    path.write_text(content)
    with pytest.raises(RecordError) as error:
        read_record(path, Note)
    assert str(path) in str(error.value) and words in str(error.value)


def _write_for_ever(path):
    number = 0
    while True:
        number += 1
        write_record(path, Note(number=number, text="x" * 20_000), durable=False)


def test_a_reader_never_sees_half_a_record_not_even_of_a_killed_writer(tmp_path):
    path = tmp_path / "record.json"
    for _ in range(8):
        process = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(path,))
        process.start()
        wait_until(path.exists)
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            record = read_record(path, Note)
            assert record is None or len(record.text) == 20_000
        process.kill()
        process.join()
        assert json.loads(path.read_text())["number"] > 0


def _hold(path, started):
    with locked(path):
        started.set()
        time.sleep(900)


def test_the_lock_excludes_other_processes_and_dies_with_its_holder(tmp_path):
    context = multiprocessing.get_context("fork")
    started = context.Event()
    process = context.Process(target=_hold, args=(tmp_path / ".lock", started))
    process.start()
    assert started.wait(900)
    with (
        pytest.raises(ExperimentError, match="another command has held"),
        locked(tmp_path / ".lock", timeout_s=0.2),
    ):
        pass
    process.kill()
    process.join()
    with locked(tmp_path / ".lock", timeout_s=5):
        pass


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExperimentError, match=r"cannot write .*Expected a writable folder"):
        write_record(tmp_path / "file" / "record.json", Note(text=""))
    with pytest.raises(ExperimentError, match="cannot lock"), locked(tmp_path / "file" / ".lock"):
        pass


def test_times_are_utc_wherever_the_machine_is(monkeypatch):
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        assert seconds("1970-01-02T00:00:00Z") == 86400
        assert 0 <= time.time() - seconds(now()) < 900
    finally:
        monkeypatch.undo()
        time.tzset()
