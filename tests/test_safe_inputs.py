"""Nothing that is given runs code, and nothing that is written is half there: what the package's own text shows."""

import ast

import pytest

from tests.helpers.configs import ROOT

MODULES = sorted((ROOT / "imagen_jax").rglob("*.py"))
# they make objects, or programs, of what a file says
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve", "torch", "yaml"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "runpy.run_path", "np.fromfile"}
UNSAFE_FLAGS = {"allow_pickle": {True}, "shell": {True}, "trust_remote_code": {True, None}}
# what writes a file in the place where it is read
WRITING = {"write_text", "write_bytes", "savefig", "tofile"}
# files.py puts files in place; so does checkpoints.py the config of a stage, which it writes by another name
WRITERS = {"files.py", "checkpoints.py", "manifests.py", "watchdog.py"}


def unsafe(tree):
    """(line, what it is) of what could run code that a file brings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            names = []
        yield from ((node.lineno, name) for name in names if name.split(".")[0] in UNSAFE_MODULES)
        if isinstance(node, ast.Call):
            if ast.unparse(node.func) in UNSAFE_CALLS:
                yield node.lineno, ast.unparse(node.func)
            for keyword in node.keywords:
                value = getattr(keyword.value, "value", None)
                if keyword.arg in UNSAFE_FLAGS and value in UNSAFE_FLAGS[keyword.arg]:
                    yield node.lineno, f"{keyword.arg}={value}"


def writing(tree):
    """(line, what it is) of what writes a file under its own name; lines added at its end are no such thing."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
        modes = [ast.unparse(part).strip("'") for part in [*node.args, *(word.value for word in node.keywords)]]
        if name in WRITING or (name == "open" and {"w", "wb", "w+", "x"} & set(modes)):
            yield node.lineno, name


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "def f():\n    from torch import load",
        "import yaml.loader",
        "eval(text)",
        "np.load(file, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "AutoTokenizer.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_what_would_run_code_is_seen(text):
    assert list(unsafe(ast.parse(text)))


def test_no_module_runs_what_a_file_says():
    found = {path.name: list(unsafe(ast.parse(path.read_text()))) for path in MODULES}
    assert len(found) > 50
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize("text", ["path.write_text('')", "open(path, 'w')", "path.open(mode='wb')"])
def test_what_writes_under_a_file_s_own_name_is_seen(text):
    assert list(writing(ast.parse(text)))
    assert not list(writing(ast.parse("path.open('a'); open(path); write_whole(path, data)")))


def test_every_file_is_put_in_place_by_one_function():
    found = {path.name: list(writing(ast.parse(path.read_text()))) for path in MODULES}
    assert {name: lines for name, lines in found.items() if lines and name not in WRITERS} == {}
