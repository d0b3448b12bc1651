"""Of several processes, one writes to a folder; the claim of one that was killed blocks nobody for long."""

import json
import subprocess
import sys
import threading

import pytest

from imagen_jax.errors import TrainingError
from imagen_jax.io import claims

HOLD = """
import sys, time
from imagen_jax.io import claims, paths
with claims.claim(paths.as_path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path):
    if request.param == "disk":
        return tmp_path / "run"
    return request.getfixturevalue("bucket") / "claims" / request.node.name


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(claims, "STALE_SECONDS", 1.5)
    monkeypatch.setattr(claims, "_POLL_SECONDS", 0.1)


def test_one_writer(folder, fast):
    with claims.claim(folder) as held:
        held.check()
        with pytest.raises(claims.ClaimedError, match="process"), claims.claim(folder):
            pass
    with claims.claim(folder):
        pass


def test_killed_owner_blocks_nobody(folder):
    """Its machine knows that it is dead."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"held\n"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    with claims.claim(folder):
        pass


def test_stale_claim_of_other_machine(bucket, fast):
    """One of several takes it over; the owner, should it wake up, learns that."""
    folder = bucket / "stale"
    (folder / ".lock").write_bytes(json.dumps({"pid": 1, "host": "other", "since": "noon"}).encode())
    results = []

    def run():
        try:
            with claims.claim(folder):
                results.append("held")
                over.wait(20)
        except claims.ClaimedError:
            results.append("refused")
            over.set()

    over = threading.Event()
    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["held", "refused"]


def test_lost_claim_stops_its_owner(bucket, fast):
    folder = bucket / "lost"
    with claims.claim(folder) as held:
        (folder / ".lock").write_bytes(json.dumps({"pid": 7, "host": "other", "since": "noon"}).encode())
        held._thread.join(10)
        with pytest.raises(TrainingError, match="process 7 on other"):
            held.check()
    assert (folder / ".lock").exists()


def test_claims_survive_lost_answers(bucket, fast):
    """A repeated write that had succeeded at first is not taken for another's."""
    bucket.faults.rate = 0.3
    with claims.claim(bucket / "flaky") as held:
        threading.Event().wait(2)
        held.check()
    assert bucket.faults.failed


def test_claim_of_failed_release(bucket, fast):
    """A bucket that vanished while it was claimed can be claimed again at once when it is back."""
    with claims.claim(bucket / "back"):
        bucket.faults.vanished = True
    bucket.faults.vanished = False
    assert (bucket / "back" / ".lock").exists()
    with claims.claim(bucket / "back") as held:
        held.check()


def test_damaged_lock_is_still_a_lock(tmp_path):
    with claims.claim(tmp_path):
        (tmp_path / claims.LOCK_FILE).write_bytes(b'{"pid": \xff\x80')
        with pytest.raises(claims.ClaimedError, match="another process"), claims.claim(tmp_path):
            pass
    with claims.claim(tmp_path):
        pass
