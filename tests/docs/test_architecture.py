"""The picture in docs/architecture.md shows the rooms of the layers contract."""

import re
import runpy

from tests.helpers.configs import ROOT


def test_picture_is_current():
    """`python docs/rooms.py` draws it."""
    rooms = runpy.run_path(str(ROOT / "docs/rooms.py"))
    expected = [text for row in rooms["read_rows"]() for room in row for text in (room, rooms["CONTENTS"][room])]
    drawn = re.findall(r"<text[^>]*>([^<]*)</text>", rooms["PICTURE"].read_text())
    assert [text for text in drawn if text != "imports"] == expected
