"""Files that grow by records: a record is written entirely or waits, whatever the system says."""

import errno
import os
import resource

import pytest

from imagen_jax.io import appended
from imagen_jax.io.appended import AppendedFile

FAILURES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.ESTALE, errno.EMFILE)


def appended_to(file, *records):
    for record in records:
        file.append(record)
        file.flush()


@pytest.mark.parametrize("number", FAILURES, ids=lambda number: errno.errorcode[number])
@pytest.mark.parametrize("call", ["open", "write", "close"])
def test_failed_record_waits(tmp_path, monkeypatch, number, call):
    file = AppendedFile(tmp_path / "log.txt")
    appended_to(file, b"1\n")
    real = getattr(os, call)

    def fail(*arguments, **options):
        if call != "open":
            real(arguments[0], *arguments[1:])  # what a network file system reports late may be written or not
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        for record in (b"2\n", b"3\n"):
            with pytest.raises(OSError) as raised:
                appended_to(file, record)
            assert raised.value.errno == number
    assert file.waiting == 2 and not file.is_due
    appended_to(file, b"4\n")
    assert file.waiting == file.lost == 0
    assert file.path.read_bytes() == b"1\n2\n3\n4\n"


def test_part_of_a_record_is_removed(tmp_path):
    """At a limit on the size of files, the system writes what fits of a record."""
    file = AppendedFile(tmp_path / "metrics.jsonl")
    appended_to(file, b"a" * 90 + b"\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError):
            appended_to(file, b"b" * 90 + b"\n")
        assert file.path.stat().st_size == 91
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    appended_to(file, b"c\n")
    assert file.path.read_bytes() == b"a" * 90 + b"\n" + b"b" * 90 + b"\nc\n"


def test_part_that_cannot_be_removed_is_removed_later(tmp_path, monkeypatch):
    file = AppendedFile(tmp_path / "events", separator=b"")
    appended_to(file, b"1")
    real = os.write

    def write_half(descriptor, data):
        real(descriptor, data[: len(data) // 2])
        raise OSError(errno.EIO, "broken")

    def fail(*_):
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(os, "write", write_half)
        patch.setattr(os, "truncate", fail)
        appended_to(file, b"2345")
    assert file.path.read_bytes() == b"123"
    appended_to(file, b"6")
    assert file.path.read_bytes() == b"123456"


def test_another_file_of_that_name_is_not_cut(tmp_path):
    file = AppendedFile(tmp_path / "log.txt")
    file.path.symlink_to("/dev/full")
    with pytest.raises(OSError):
        appended_to(file, b"1\n")
    file.path.unlink()
    file.path.write_bytes(b"a note\n")
    file.flush()
    assert file.path.read_bytes() == b"a note\n1\n"


def test_begins_with_a_line_of_its_own(tmp_path):
    (tmp_path / "log.txt").write_bytes(b"half a li")
    appended_to(AppendedFile(tmp_path / "log.txt"), b"1\n", b"2\n")
    assert (tmp_path / "log.txt").read_bytes() == b"half a li\n1\n2\n"


def test_deleted_file_gets_its_header_again(tmp_path):
    file = AppendedFile(tmp_path / "events", header=b"head", separator=b"")
    appended_to(file, b"1", b"2")
    assert file.path.read_bytes() == b"head12"
    file.path.unlink()
    appended_to(file, b"3")
    assert file.path.read_bytes() == b"head3"


def test_oldest_records_are_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(appended, "WAITING_BYTES", 10)
    file = AppendedFile(tmp_path / "none" / "log.txt")
    for number in range(10):
        with pytest.raises(FileNotFoundError):
            appended_to(file, b"%d11\n" % number)
    assert file.lost == 8
    file.path.parent.mkdir()
    file.flush()
    assert file.path.read_bytes() == b"811\n911\n"


def test_replaced_content_comes_first(tmp_path):
    file = AppendedFile(tmp_path / "metrics.jsonl")
    file.path.write_bytes(b"1\n2\n3\n")
    inode = file.path.stat().st_ino
    file.replace(b"1\n")
    appended_to(file, b"4\n")
    assert file.path.read_bytes() == b"1\n4\n"
    assert file.path.stat().st_ino == inode  # cut: a copy would need space
    file.replace(b"5\n")
    appended_to(file, b"6\n")
    assert file.path.read_bytes() == b"5\n6\n"
