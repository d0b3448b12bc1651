"""A reader who types all blocks of a document, in order, at a desk (`desk.py`) of their own."""

import contextlib
import os
import re
import shlex
import subprocess
import sys
import time

from tests.conftest import xla_flags
from tests.helpers.configs import ROOT
from tests.helpers.reader import client
from tests.helpers.reader.blocks import SPHINX
from tests.helpers.reader.desk import build_desk
from tests.helpers.reader.shell import Shell, split_commands

# A value in capitals stands for what an earlier command has printed for the same flag.
PLACEHOLDER = re.compile(r"(?P<flag>--[\w.]+)=(?P<name>[A-Z]{3,})(?![\w./])")


@contextlib.contextmanager
def start_worker(folder):
    """Runs the process that runs the commands of all readers; yields the variables that lead to it."""
    address = folder / "worker"
    variables = {
        client.WORKER: str(address),
        client.PYTHON: sys.executable,
        "PYTHONPATH": str(ROOT),
        "HF_HOME": str(folder / "hub"),
        "XLA_FLAGS": xla_flags(devices=1),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.reader.worker", f"--listen={address}"],
        env=os.environ | variables,
        cwd=folder,
        start_new_session=True,
    )
    try:
        while not address.exists():
            assert process.poll() is None, "the worker has ended"
            time.sleep(0.1)
        yield variables
    finally:
        process.kill()
        process.wait()


class Reader:
    """Types blocks.

    Args:
        folder: for the desk.
        variables: those of `start_worker`, and others.
    """

    def __init__(self, folder, variables):
        self.checkout, self.home, programs = build_desk(folder)
        environment = os.environ | variables | {"HOME": str(self.home), "PATH": str(programs)}
        environment.pop("JAX_NUM_PROCESSES", None)
        self._shell = Shell(self.checkout, environment, folder / "logs")
        self.printed = ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._shell.__exit__()

    def read(self, blocks, name):
        """Types blocks in order. Raises AssertionError for one that fails, with the line of the document.

        Args:
            blocks: of the document.
            name: of the document, for errors.
        """
        for block in blocks:
            if block.is_shell:
                self.type(block.code, f"{name}:{block.line}")
            elif block.language == "python":
                self._use_python(block, f"{name}:{block.line}")
            elif block.language not in SPHINX:
                assert block.file, f"{name}:{block.line}: a block of {block.language!r}, and no file is named before it"
                (self.checkout / block.file).write_text(block.code)

    def type(self, code, place):
        """Types shell commands, one after the other."""
        assert "…" not in code, f"{place}: {code!r} cannot be typed: replace … by what a reader would type"
        for command in split_commands(code):
            command = PLACEHOLDER.sub(self._as_printed, command)
            code, printed = self._shell.type(command)
            self.printed += printed
            assert code == 0, f"{place}: {command}{printed}"
            assert "Traceback" not in printed, f"{place}: {command}{printed}"

    def _as_printed(self, match):
        values = re.findall(rf"{re.escape(match['flag'])}=(\S*[\w/])", self.printed)
        return f"{match['flag']}={values[-1]}" if values else match[0]

    def _use_python(self, block, place):
        """Saves a config file under the name that the text gives it, or runs the block."""
        if "def get_config(" in block.code:
            assert block.file.endswith(".py"), f"{place}: a config file, and the text before does not name it"
            (self.checkout / block.file).write_text(block.code)
        else:
            (self.checkout / "block.py").write_text(block.code)
            config = block.file if block.file.startswith("configs/") else ""
            self.type(f"python_session block.py {shlex.quote(config)}", place)
