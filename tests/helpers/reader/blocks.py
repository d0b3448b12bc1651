"""The fenced blocks of a document with the text before them, and the commands in the docstring of a config."""

import ast
import re
import textwrap
from typing import NamedTuple

FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[^\n`]*)\n(?P<code>.*?)^ *```$", re.DOTALL | re.MULTILINE)
# a block without a language is for a shell, too
SHELL = ("", "bash", "sh", "shell", "console")
# what Sphinx reads; `make docs` fails for what is wrong in it
SPHINX = ("{eval-rst}", "{toctree}")


class Block(NamedTuple):
    """A fenced block: its language, its code, the document's line it begins at, and the paragraph before it."""

    language: str
    code: str
    line: int
    before: str

    @property
    def is_shell(self):
        return self.language in SHELL

    @property
    def file(self):
        """The file that the paragraph before names in backticks, the last of several; empty if none."""
        names = re.findall(r"`([\w./-]+\.[a-z]+)`", self.before)
        return names[-1] if names else ""

    def lines(self):
        """Returns the code in lines without breaks, comments or alignment; the language is a part of each."""
        joined = re.sub(r"\s+#.*$", "", self.code.replace("\\\n", " "), flags=re.MULTILINE)
        lines = (" ".join(line.split()) for line in joined.splitlines())
        return [("shell" if self.is_shell else self.language, line) for line in lines if line]


def read_blocks(text):
    """Returns the fenced blocks of a Markdown text."""
    blocks = []
    for match in FENCE.finditer(text):
        before = text[: match.start()].rstrip().rpartition("\n\n")[2]
        line = text[: match.start()].count("\n") + 2
        blocks.append(Block(match["language"].strip(), textwrap.dedent(match["code"]), line, before))
    return blocks


def docstring_commands(source):
    """Returns the paragraphs of a module's docstring that are commands, one block each."""
    text = ast.get_docstring(ast.parse(source)) or ""
    paragraphs = [textwrap.dedent(paragraph) for paragraph in re.split(r"\n\s*\n", text)]
    return [Block("", f"{code.strip()}\n", 1, "") for code in paragraphs if re.match(r"\s*(imagen|python) ", code)]
