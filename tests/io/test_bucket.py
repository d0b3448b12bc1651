"""Files in a bucket behave as on a disk, whatever the server does, and no error is taken for an absent file."""

import errno
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from imagen_jax.errors import TrainingError
from imagen_jax.io import atomic, checksums, json_lines, paths, uploads
from imagen_jax.io import bucket as buckets
from imagen_jax.io.bucket import BucketError
from tests.helpers.buckets import _Proxy


def test_path_like_pathlib(bucket):
    folder = paths.as_path("gs://pictures/paths/run")
    assert (str(folder), folder.name, str(folder.parent)) == ("gs://pictures/paths/run", "run", "gs://pictures/paths")
    assert not folder.exists() and not folder.is_dir() and list(folder.iterdir()) == []
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a" / "config.json").write_bytes(b"{}")
    (folder / "ab").write_bytes(b"12")
    assert folder.is_dir() and not folder.is_file()
    assert not (folder / "a").is_file() and (folder / "a").is_dir()
    assert (folder / "ab").is_file() and not (folder / "ab").is_dir()
    assert [path.name for path in folder.iterdir()] == ["a", "ab"]
    assert list(folder.glob("*/config.json")) == [folder / "a" / "config.json"]
    assert list(folder.glob("a*")) == [folder / "a", folder / "ab"]
    assert paths.file_sizes(folder) == {"a/config.json": 2, "ab": 2}
    assert (folder / "ab").stat().st_size == 2
    with pytest.raises(FileNotFoundError):
        (folder / "b").read_bytes()
    with pytest.raises(FileNotFoundError):
        (folder / "b").unlink()
    (folder / "b").unlink(missing_ok=True)
    paths.remove_tree(folder)
    assert not folder.exists()


def test_local_path_is_pathlib(tmp_path):
    assert type(paths.as_path(tmp_path)) is type(tmp_path)
    assert paths.as_path("~") == tmp_path.home()


def test_atomic_files_and_checksums(bucket, tmp_path):
    folder = bucket / "atomic"
    atomic.write_json(folder / "a.json", {"a": 1})
    assert atomic.read_json(folder / "a.json") == {"a": 1}
    path = folder / "large.bin"
    temporary = atomic.temp_path(path)
    temporary.write_bytes(os.urandom(2**20))
    digest = atomic.sha256_file(temporary)
    atomic.commit(temporary, path)
    assert not temporary.exists() and atomic.sha256_file(path) == digest

    checksums.write_shard(folder, 0, checksums.list_files(folder))
    checksums.merge_shards(folder, 1)
    assert checksums.verify(folder, lambda name: True) == []
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    (folder / "a.json").unlink()
    (folder / "b").write_bytes(b"")
    problems = checksums.verify(folder, lambda name: True)
    assert [text.split()[0] for text in problems] == ["a.json", "b", "large.bin"]


@pytest.mark.parametrize("fault", ["none", "503", "latency"])
def test_writes_survive_faults(bucket, fault):
    bucket.faults.rate, bucket.faults.seconds = {"none": (0, 0), "503": (0.3, 0), "latency": (0, 0.05)}[fault]
    folder = bucket / f"faults-{fault}"
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: (folder / f"{number}").write_bytes(b"%d" % number), range(24)))
        read = list(threads.map(lambda number: (folder / f"{number}").read_bytes(), range(24)))
    assert read == [b"%d" % number for number in range(24)]
    assert len(folder.tree()) == 24
    paths.remove_tree(folder)
    assert not folder.exists()
    assert (bucket.faults.failed > 0) == (fault == "503")


def test_threads_share_a_client(bucket):
    buckets.close_client()
    barrier = threading.Barrier(8)
    with ThreadPoolExecutor(8) as threads:
        clients = set(threads.map(lambda _: (barrier.wait(), id(buckets._client()))[1], range(8)))
    assert len(clients) == 1


def test_bucket_errors_are_sentences(bucket, monkeypatch):
    """Absent is not the same as denied, and a bucket is never created."""
    absent = paths.as_path("gs://no-such-bucket/run")
    for use in (absent.exists, absent.check_access, absent.read_bytes, lambda: (absent / "a").write_bytes(b"")):
        with pytest.raises(BucketError, match="no-such-bucket"):
            use()
    bucket.faults.denied = True
    for use in ((bucket / "run").exists, (bucket / "run").read_bytes, (bucket / "run").check_access):
        with pytest.raises(TrainingError, match="denies access"):
            use()
    bucket.faults.denied, bucket.faults.rate = False, 1.0
    monkeypatch.setattr(buckets, "RETRY_SECONDS", 1.0)
    with pytest.raises(BucketError, match="does not answer"):
        (bucket / "run").exists()


def test_access_with_a_lost_answer(bucket, monkeypatch):
    """A deletion that is repeated because its answer was lost finds nothing."""
    statuses = [503]

    def lose_first(self):
        answer, body = self._pass_on(self._body())
        self._answer(statuses.pop() if statuses else answer.status, answer.getheaders(), body)

    monkeypatch.setattr(_Proxy, "do_DELETE", lose_first)
    (bucket / "probed").check_access()
    assert not statuses and not (bucket / "probed").tree()


def test_appended_in_parts(bucket, monkeypatch):
    """Each start adds parts; what was uploaded is never written again; a replaced file has no old parts."""
    monkeypatch.setattr(uploads, "PART_BYTES", 100)
    file, expected = bucket / "log" / "metrics.jsonl", []
    for start in range(3):
        for step in range(20):
            json_lines.append_json_line(file, {"start": start, "step": step})
            expected.append({"start": start, "step": step})
            if step % 7 == 0:
                uploads.flush()
        assert json_lines.read_json_lines(file) == expected
        uploads._uploads.logs.pop(str(file))  # the process ends
    assert max(path.stat().st_size for path in file.parent.iterdir()) < 200
    assert len(list(file.parent.iterdir())) > 6

    json_lines.write_json_lines(file, expected[:5])
    json_lines.append_json_line(file, {"step": 5})
    assert json_lines.read_json_lines(file) == [*expected[:5], {"step": 5}]


def test_kill_while_replaced(bucket, monkeypatch):
    """Parts that a kill left behind are not read twice."""
    file = bucket / "replaced" / "metrics.jsonl"
    json_lines.append_json_line(file, {"step": 1})
    uploads.flush()
    monkeypatch.setattr(buckets.BucketPath, "unlink", lambda *_, **__: None)
    json_lines.write_json_lines(file, [{"step": 1}])
    assert len(list(file.parent.iterdir())) == 2
    assert json_lines.read_json_lines(file) == [{"step": 1}]


def test_failed_upload_is_kept(bucket, monkeypatch):
    file = bucket / "kept" / "log.txt"
    uploads.append_text(file, "a\n")
    bucket.faults.vanished = True
    with pytest.raises(BucketError):
        uploads.flush()
    uploads.append_text(file, "b\n")
    bucket.faults.vanished = False
    assert uploads.read_appended(file) == b"a\nb\n"


def test_one_failing_upload_keeps_no_other_back(bucket, monkeypatch):
    files = [bucket / "kept_back" / name for name in ("a.txt", "b.txt")]
    for file in files:
        uploads.append_text(file, "1\n")
    write = buckets.BucketPath.write_bytes

    def fail(path, data):
        if path.name.startswith("a.txt"):
            raise BucketError(errno.EACCES, "denied", str(path))
        return write(path, data)

    with monkeypatch.context() as patch, pytest.raises(BucketError):
        patch.setattr(buckets.BucketPath, "write_bytes", fail)
        uploads.flush()
    assert list(files[0].parent.tree()) == ["b.txt.0001"]
    uploads.flush()
    assert uploads.read_appended(files[0]) == b"1\n"


def test_json_is_limited(bucket, monkeypatch):
    monkeypatch.setattr(atomic, "_MAX_JSON_BYTES", 4)
    (bucket / "a.json").write_bytes(json.dumps([1, 2, 3]).encode())
    with pytest.raises(ValueError, match="larger"):
        atomic.read_json(bucket / "a.json")
