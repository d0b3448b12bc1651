"""A shell that a reader types blocks of commands into, one after the other: variables and the folder are kept."""

import contextlib
import os
import selectors
import signal
import subprocess

TIMEOUT = 300


def split_commands(code):
    """Returns a block's commands: pieces of whole lines that are as short as the syntax of the shell allows.

    Of what is no valid shell, the rest is the last piece.
    """
    commands, piece = [], ""
    for line in code.splitlines(keepends=True):
        piece += line
        is_continued = line.rstrip("\n").endswith("\\")
        if (
            not is_continued
            and subprocess.run(["bash", "-n"], input=piece, text=True, capture_output=True).returncode == 0
        ):
            commands.append(piece)
            piece = ""
    return [command for command in [*commands, piece] if command.strip()]


class Shell:
    """Bash with an environment of its own.

    Args:
        folder: the working directory.
        environment: all variables.
        logs: where the text of blocks and their output is kept.
    """

    def __init__(self, folder, environment, logs):
        self._logs, self._count = logs, 0
        logs.mkdir(exist_ok=True)
        self._process = subprocess.Popen(
            ["/bin/bash", "--noprofile", "--norc", "-eu", "-o", "pipefail"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._kill()

    def type(self, code):
        """Runs a block of commands.

        Returns:
            (exit code of the first command that fails, or 0; everything that was printed).
        """
        self._count += 1
        script, output = self._logs / f"{self._count}.sh", self._logs / f"{self._count}.out"
        script.write_text(code)
        # `trap`: what failed, by the line as it stands in the block
        self._send(
            f"trap 'code=$?; echo \"failed with exit code $code: $BASH_COMMAND\" >>{output}; exit $code' ERR\n"
            f". {script} </dev/null >{output} 2>&1\n"
            "trap - ERR; echo done\n"
        )
        is_done = self._read_line() == b"done\n"
        printed = output.read_text(errors="replace") if output.exists() else ""
        return (0 if is_done else self._process.wait() or 1), printed

    def _send(self, text):
        try:
            self._process.stdin.write(text.encode())
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise AssertionError("the shell has ended, as an earlier block told it to") from error

    def _read_line(self):
        """Returns the next line of the shell itself; empty if it ends, or after TIMEOUT, when it is killed."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(TIMEOUT):
                self._kill()
                return b""
        return self._process.stdout.readline()

    def _kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
