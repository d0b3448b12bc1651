import sys

import pytest
from tqdm import tqdm

from imagen_jax.io.screen import Screen


def test_full_disk_behind_the_screen():
    full = open("/dev/full", "w", buffering=1)  # noqa: SIM115  # closing it fails
    screen, passed = Screen(full), 0
    print("a line", file=screen, flush=True)
    for _ in tqdm(range(3), file=screen, mininterval=0):
        tqdm.write("a line", file=screen)
        passed += 1
    with pytest.raises(OSError):
        full.close()
    assert passed == 3


def test_lines_move_a_bar(capsys):
    with tqdm(total=2, file=Screen(), mininterval=0) as bar:
        tqdm.write("a line", file=sys.stderr)
        bar.update()
    assert "\ra line\n" in capsys.readouterr().err.replace(" ", "").replace("aline", "a line")
