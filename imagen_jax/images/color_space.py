"""ICC profiles for color spaces that files name without one: by code points (cICP, nclx), or by gAMA and cHRM of PNG.

ITU-T H.273 for code points; W3C PNG Third Edition, 11.3.2; ICC.1:2022 for the profile. HDR (PQ, HLG) has no profile: it
would need a tone curve, which no file names.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np

_D65, _DCI_WHITE = (0.3127, 0.329), (0.314, 0.351)
_SRGB = ((0.64, 0.33), (0.3, 0.6), (0.15, 0.06))
_PRIMARIES = {  # (x, y) of red, green, blue and white, by code point
    1: (*_SRGB, _D65),
    5: ((0.64, 0.33), (0.29, 0.6), (0.15, 0.06), _D65),
    6: ((0.63, 0.34), (0.31, 0.595), (0.155, 0.07), _D65),
    9: ((0.708, 0.292), (0.17, 0.797), (0.131, 0.046), _D65),
    11: ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06), _DCI_WHITE),
    12: ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06), _D65),
}
_SRGB_CURVE = struct.pack(
    ">4sIHH5i", b"para", 0, 3, 0, *(round(n * 65536) for n in (2.4, 1 / 1.055, 0.055 / 1.055)), 5072, 2651
)
_POWERS = {4: 2.2, 5: 2.8, 8: 1.0}  # exponents of transfer functions, by code point
# The curves of video cameras are meant to be seen through a display's, and still images in them are made from sRGB.
_LIKE_SRGB = (1, 6, 13, 14, 15)
_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_SRGB_GAMMA = 45455  # what PNG files in sRGB have as gAMA: it stands for the curve, which is no power
_GAMMA_TOLERANCE = 0.05  # libpng's
_MAX_HEAD = 2**16  # bytes of a HEIC or AVIF file that are searched for its code points

Chromaticities = tuple[tuple[float, float], ...]  # of red, green, blue and white


def code_point_profile(primaries: int, transfer: int) -> bytes:
    """Returns the profile of a color space by its code points; empty for HDR and for unknown ones."""
    if primaries not in _PRIMARIES or not (transfer in _LIKE_SRGB or transfer in _POWERS):
        return b""
    curve = _SRGB_CURVE if transfer in _LIKE_SRGB else _power_curve(_POWERS[transfer])
    return _write_profile(_PRIMARIES[primaries], curve)


def png_profile(chunks: Mapping[bytes, bytes], embedded: bytes) -> bytes:
    """Returns the profile of a PNG, by the chunk that has precedence: cICP, iCCP, sRGB, gAMA with cHRM.

    gAMA alone is ignored, as browsers do: many programs have written wrong ones.

    Args:
        chunks: the chunks that describe colors, by name.
        embedded: the profile of iCCP, possibly empty.

    Returns:
        The profile; empty for sRGB, and for HDR without iCCP.
    """
    points = chunks.get(b"cICP", b"")
    is_full_range_rgb = len(points) == 4 and points[2:] == b"\0\1"
    profile = code_point_profile(points[0], points[1]) if is_full_range_rgb else b""
    if profile or embedded or b"sRGB" in chunks:
        return profile or embedded
    gamma, corners = chunks.get(b"gAMA", b""), chunks.get(b"cHRM", b"")
    if len(gamma) != 4 or len(corners) != 32 or points:
        return b""
    level = int.from_bytes(gamma, "big")
    white, *primaries = (tuple(pair) for pair in np.array(struct.unpack(">8I", corners)).reshape(4, 2) / 100_000)
    if abs(level / _SRGB_GAMMA - 1) <= _GAMMA_TOLERANCE:
        return _write_profile((*primaries, white), _SRGB_CURVE)
    return _write_profile((*primaries, white), _power_curve(100_000 / level)) if level else b""


def container_profile(data: bytes) -> bytes:
    """Returns the profile for the code points of a HEIC or AVIF file; empty if it has none, or another format."""
    if data[4:8] != b"ftyp":
        return b""
    start = data.find(b"colrnclx", 0, _MAX_HEAD)
    points = data[start + 8 : start + 12]
    return code_point_profile(*struct.unpack(">HH", points)) if start >= 0 and len(points) == 4 else b""


def _power_curve(power: float) -> bytes:
    return struct.pack(">4sIHHi", b"para", 0, 0, 0, round(min(power, 100.0) * 65536))


def _write_profile(chromaticities: Chromaticities, curve: bytes) -> bytes:
    """Returns a profile of a matrix and a curve; empty if the chromaticities are of no color space."""
    points = np.array(chromaticities, np.float64)
    if (points[:, 1] <= 0).any() or (points > 1).any():
        return b""
    xyz = np.stack([points[:, 0] / points[:, 1], np.ones(4), (1 - points.sum(1)) / points[:, 1]])
    try:
        matrix = xyz[:, :3] * np.linalg.solve(xyz[:, :3], xyz[:, 3])
        cones = _BRADFORD @ xyz[:, 3], _BRADFORD @ _D50
        adapted = np.linalg.inv(_BRADFORD) @ np.diag(cones[1] / cones[0]) @ _BRADFORD @ matrix
    except np.linalg.LinAlgError:
        return b""
    if not np.isfinite(adapted).all() or np.abs(adapted).max() > 100:
        return b""
    columns = zip((b"rXYZ", b"gXYZ", b"bXYZ"), adapted.T, strict=True)
    tags = [(b"wtpt", _xyz(_D50)), *((name, _xyz(column)) for name, column in columns)]
    return _write_tags([*tags, *((name, curve) for name in (b"rTRC", b"gTRC", b"bTRC"))])


def _xyz(values: np.ndarray) -> bytes:
    return struct.pack(">4sI3i", b"XYZ ", 0, *(round(float(value) * 65536) for value in values))


def _write_tags(tags: list[tuple[bytes, bytes]]) -> bytes:
    start, entries, body = 132 + 12 * len(tags), b"", b""
    for name, content in tags:
        entries += name + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    header = struct.pack(">I4sI4s4s4s12x4s", start + len(body), b"", 4 << 24, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    header = (header + bytes(28) + _xyz(_D50)[8:]).ljust(128, b"\0")
    return header + struct.pack(">I", len(tags)) + entries + body
