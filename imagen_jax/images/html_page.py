"""Parts of self-contained HTML pages: text of unknown origin, tables, and images and data inside the file.

A page asks for nothing from anywhere: a content security policy allows what is in the file, and nothing else.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imagen_jax.images.grid import decode_png, viewable_rgb
from imagen_jax.io.text import printable

_ASSETS = Path(__file__).parent / "page"
_LOSSLESS_SIDE = 64  # pixels, up to which images are PNG: the pixels of the model
_JPEG_QUALITY = 88
_MAX_PNG_BYTES, _MAX_PNG_SIDE = 2_000_000, 2048  # of files that are kept as they are; pixels of others
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def render_page(title: str, body: str, *, style: str = "", script: str = "", policy: str = _POLICY) -> str:
    """Returns a full page.

    Args:
        title: of unknown origin.
        body: HTML.
        style: CSS after that of all pages.
        script: JavaScript, run as a module once the page is there.
        policy: what the page may load; images beside the file need `img-src 'self'`.
    """
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><title>{escape(title)}</title>'
        f"<style>{read_asset('page.css')}{style}</style>"
    )
    code = f'<script type="module">{script}</script>' if script else ""
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{body}{code}</body></html>\n'


def read_asset(name: str, folder: Path = _ASSETS) -> str:
    """Returns a style sheet or a script of the package."""
    return (folder / name).read_text(encoding="utf-8")


def escape(text: Any) -> str:
    """Returns text of unknown origin for HTML."""
    return html.escape(printable(str(text)))


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns rows of cells of unknown origin as a table."""
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def data_script(name: str, value: Any) -> str:
    """Returns a JSON value that scripts of the page read by its `name`, an id."""
    text = json.dumps(value, allow_nan=False).replace("<", "\\u003c")  # so that no text ends the element
    return f'<script type="application/json" id="{name}">{text}</script>'


def png_uri(path: Path) -> str:
    """Returns a PNG file as a data URI; one of more than 2 MB is made smaller, and JPEG."""
    data = path.read_bytes()
    if len(data) > _MAX_PNG_BYTES:
        return image_uri(decode_png(data), _MAX_PNG_SIDE)
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def image_uri(image: np.ndarray, max_side: int = 192) -> str:
    """Returns an image as a data URI; larger ones are made smaller, and are JPEG.

    Args:
        image: uint8 or uint16 [H, W, C], as `image_grid` shows it.
        max_side: of the longer side, in pixels.
    """
    picture = Image.fromarray(viewable_rgb(image[None])[0])
    picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    is_small = max(image.shape[:2]) <= _LOSSLESS_SIDE
    file = io.BytesIO()
    if is_small:
        picture.save(file, "PNG", optimize=True)
    else:
        picture.save(file, "JPEG", quality=_JPEG_QUALITY)
    return f"data:image/{'png' if is_small else 'jpeg'};base64,{base64.b64encode(file.getvalue()).decode()}"
