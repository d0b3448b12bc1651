"""Static checks: no module runs code from its inputs, and no module writes files non-atomically."""

import ast

import pytest

from tests.helpers.configs import ROOT

MODULES = sorted((ROOT / "imagen_jax").rglob("*.py"))
# modules and calls that build objects or run code from the contents of a file
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve", "torch", "yaml"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "runpy.run_path", "np.fromfile"}
UNSAFE_FLAGS = {"allow_pickle": {True}, "shell": {True}, "trust_remote_code": {True, None}}
# calls that write a file under its final name
WRITING = {"write_text", "write_bytes", "savefig", "tofile"}
# atomic.py writes files atomically; the others write temporary files and commit them, or append
WRITERS = {"atomic.py", "bucket.py", "checksums.py", "uploads.py"}  # all of them in io/


def unsafe(tree):
    """Yields (line, name) of imports and calls that could run code from a file."""
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
    """Yields (line, name) of calls that write a file under its final name; appending is allowed."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
        modes = [ast.unparse(part).strip("'") for part in [*node.args, *(word.value for word in node.keywords)]]
        if name in WRITING or (name == "open" and {"w", "wb", "w+", "x"} & set(modes)):
            yield node.lineno, name


def test_keys_of_seeds_have_64_bits():
    """`jax.random.key` drops the upper half of a seed: only keys.py calls it with anything but a constant."""
    calls = [
        (path.name, ast.unparse(node))
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"jax.random.key", "jax.random.PRNGKey"}
    ]
    assert {name for name, call in calls if call != "jax.random.key(0)"} == {"keys.py"}
    assert len(calls) > 3


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
def test_unsafe_code_is_detected(text):
    assert list(unsafe(ast.parse(text)))


def test_no_module_is_unsafe():
    findings = {path.name: list(unsafe(ast.parse(path.read_text()))) for path in MODULES}
    assert len(findings) > 50
    assert {name: lines for name, lines in findings.items() if lines} == {}


@pytest.mark.parametrize("text", ["path.write_text('')", "open(path, 'w')", "path.open(mode='wb')"])
def test_direct_writes_are_detected(text):
    assert list(writing(ast.parse(text)))
    assert not list(writing(ast.parse("path.open('a'); open(path); write_whole(path, data)")))


def test_files_are_written_atomically():
    findings = {path.name: list(writing(ast.parse(path.read_text()))) for path in MODULES}
    assert {name: lines for name, lines in findings.items() if lines and name not in WRITERS} == {}
