"""The programs that a reader's shell finds: most are handed to the worker, which has imported jax already.

Run as `python -I -S client.py PROGRAM ARGUMENT…`. A program that cannot be run in a test is in NOT_RUN, with the
reason; one that is neither there nor anywhere else is not found by the shell, as in any other shell.
"""

import json
import os
import re
import socket
import subprocess
import sys

WORKER = "READER_WORKER"  # the variable with the address of the worker
PYTHON = "READER_PYTHON"  # and that with the real interpreter

NOT_RUN = {
    "gcloud": "it needs an account, and TPUs cost money; tests/launch runs the scripts that call it on a mock cloud",
    "sudo": "it would change this machine",
    "hf": "it needs an account and a network",
    "tfds": "it downloads the data set: 20 GB",
    "pre-commit": "it installs into the checkout",
    "git": "it needs a network",
    "docker": "it needs a network",
    "srun": "it needs a cluster",
    "tensorboard": "it runs until it is stopped",
}
# Targets that run commands of the package alone. The others install, or take long: `make` only says what it would do.
MAKE_RUNS = {"demo", "help"}


def main(program, arguments):
    """Runs a program; returns its exit code."""
    if program in NOT_RUN:
        print(f"not run: {program} {' '.join(arguments)} ({NOT_RUN[program]})")
        return 0
    if program in ("pip", "uv") or arguments[:2] == ["-m", "pip"]:
        return check_pip(arguments)
    if program == "make":
        targets = {argument for argument in arguments if re.fullmatch(r"[a-z-]+", argument)}
        return run_real("/usr/bin/make", *(arguments if targets <= MAKE_RUNS else ["--dry-run", *arguments]))
    if int(os.environ.get("JAX_NUM_PROCESSES", "1")) > 1:  # one of several, which must run at the same time
        return run_real(os.environ[PYTHON], "-m", "tests.helpers.reader.worker", program, *arguments)
    return ask_worker(program, arguments)


def run_real(*command):
    """Runs a program of this machine."""
    return subprocess.run(command).returncode


def check_pip(arguments):
    """Checks the extras and the files of an installation, which needs a network."""
    with open("setup.py") as file:
        extras = re.findall(r'^    "([a-z]+)": \[', file.read(), flags=re.MULTILINE)
    for argument in arguments:
        for names in re.findall(r"^\.\[(.*)\]$", argument):
            unknown = set(names.split(",")) - set(extras)
            if unknown:
                print(f"error: setup.py has no extra {', '.join(unknown)}", file=sys.stderr)
                return 1
        if argument.endswith((".lock", ".txt")) and not os.path.exists(argument):
            print(f"error: there is no {argument}", file=sys.stderr)
            return 1
    print(f"not run: pip {' '.join(arguments)} (it needs a network)")
    return 0


def ask_worker(program, arguments):
    """Runs a program in the worker, with this process's working directory, environment and files."""
    request = {"program": program, "arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ[WORKER])
        data = json.dumps(request).encode()
        socket.send_fds(connection, [len(data).to_bytes(8, "big")], [0, 1, 2])
        connection.sendall(data)
        return int(connection.makefile().readline() or 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
