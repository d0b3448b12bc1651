"""Code blocks of the documentation."""

import re


def code_blocks(text, language=None):
    """Returns the code blocks of a Markdown text; those of a language, or (language, code) of all."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return blocks if language is None else [code for name, code in blocks if name == language]
