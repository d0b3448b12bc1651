"""A process that runs one command of the package after the other: each process would import jax and trace anew.

`python -m tests.helpers.reader.worker --listen=ADDRESS` takes the commands of `client.py`; with a program and its
arguments it runs that one, which is how the processes of a multi-host run are started.
"""

import contextlib
import importlib.util
import json
import os
import re
import runpy
import signal
import socket
import sys
import traceback

import jax

from imagen_jax.cli import app, serve
from imagen_jax.cli.flags import CommandFlags
from tests.helpers.reader.provisions import provide_encoders, provide_pipelines, provide_votes, with_font
from tests.helpers.reader.session import run_block
from tests.helpers.reader.tiny import tiny_arguments

# what jax has read when it started
KEPT = ("PATH", "XLA_FLAGS", "HF_HOME", "JAX_COMPILATION_CACHE_DIR")


def run_program(program, arguments):
    """Runs `imagen` or `python` with arguments, on small configs; returns the exit code."""
    if program == "imagen":
        return run_imagen(arguments)
    if program == "python_session":
        return run_block(*arguments)
    if arguments[:2] == ["-m", "imagen_jax"]:
        return run_imagen(arguments[2:])
    if arguments[:1] == ["-m"] and arguments[1].startswith("benchmarks."):
        return run_module(arguments[1], arguments[2:])
    if arguments[:1] == ["-c"]:
        exec(compile(arguments[1], "python -c", "exec"), {"__name__": "__main__"})
        return 0
    if arguments and arguments[0].endswith(".py"):
        runpy.run_path(arguments[0], run_name="__main__")
        return 0
    print(f"error: {program} {' '.join(arguments)}: the tests do not know how to run this", file=sys.stderr)
    return 127


def run_imagen(arguments):
    """Runs `imagen ARGUMENTS…`."""
    name = arguments[0] if arguments else ""
    if name == "serve":
        return check_serve(arguments[1:])
    if name in app.COMMANDS:
        arguments = [name, *small(f"imagen_jax.cli.{name}", arguments[1:])]
    return app.main(arguments)


def check_serve(arguments):
    """Checks the flags and the stages of `imagen serve`, which runs until it is stopped; tests/serving runs it."""
    args = CommandFlags(serve)
    args.parse(arguments)
    args.stage_folders(weights=False)
    print(f"not run: imagen serve {' '.join(arguments)} (it runs until it is stopped)")
    return 0


def run_module(name, arguments):
    """Runs `python -m NAME ARGUMENTS…`."""
    package = importlib.util.find_spec(name)
    if package is None:
        print(f"error: there is no module {name}", file=sys.stderr)
        return 1
    module = importlib.import_module(f"{name}.__main__" if package.submodule_search_locations else name)
    if hasattr(module, "define_flags"):
        app.run(module, small(module.__name__, arguments))
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)
    return 0


def small(module, arguments):
    """Returns the arguments of a command with a small config, whose text encoder is on this machine."""
    if module == "imagen_jax.cli.prepare":
        return with_font(arguments)
    if module == "imagen_jax.cli.votes":
        provide_votes(arguments)
        return arguments
    if module == "imagen_jax.cli.convert":
        provide_pipelines(arguments)
        return arguments
    provide_encoders(module, arguments)
    return tiny_arguments(module, arguments)


def exit_code(function, *arguments):
    """Calls what ends as a process does; returns the exit code."""
    try:
        return function(*arguments) or 0
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    except BaseException:
        traceback.print_exc()
        return 1


@contextlib.contextmanager
def as_client(request, descriptors):
    """Runs what follows in the folder, with the environment and with the files of a client."""
    before = dict(os.environ), os.getcwd(), [os.dup(number) for number in range(3)], sys.argv
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    os.environ.clear()
    os.environ.update(request["environment"] | kept)
    os.chdir(request["folder"])
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.environ.clear()
        os.environ.update(before[0])
        os.chdir(before[1])
        sys.argv = before[3]
        for number, descriptor in enumerate(before[2]):
            os.dup2(descriptor, number)
            os.close(descriptor)
        # `plan` and benchmarks change it for their process, which this one outlives
        jax.config.update("jax_enable_compilation_cache", True)


def listen(address):
    """Runs the commands of clients until it is killed."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen(8)
        while True:
            connection, _ = server.accept()
            with connection:
                header, descriptors, _, _ = socket.recv_fds(connection, 8, 3)
                with connection.makefile("rb") as file:
                    request = json.loads(file.read(int.from_bytes(header, "big")))
                with as_client(request, descriptors):
                    code = exit_code(run_program, request["program"], request["arguments"])
                # a command that a signal could have stopped leaves its handlers
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                with contextlib.suppress(OSError):
                    connection.sendall(f"{code}\n".encode())


def main(arguments):
    """Listens, or runs one program."""
    match = re.fullmatch(r"--listen=(.*)", arguments[0])
    if match:
        listen(match[1])
    sys.exit(exit_code(run_program, arguments[0], arguments[1:]))


if __name__ == "__main__":
    main(sys.argv[1:])
