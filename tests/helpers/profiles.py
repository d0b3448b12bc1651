"""ICC profiles, written byte by byte (ICC.1:2022), and what their colors are in sRGB, by the matrices of the spaces."""

import struct

import numpy as np

D50 = np.array([0.9642, 1.0, 0.8249])
D65_XY = (0.3127, 0.329)
SRGB_XY = ((0.64, 0.33), (0.3, 0.6), (0.15, 0.06))
ADOBE_XY = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
P3_XY = ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06))
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def srgb_decode(level):
    """Linear light of sRGB levels in [0, 1]. IEC 61966-2-1."""
    return np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)


def srgb_encode(linear):
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def to_xyz(primaries, white=D65_XY):
    """The matrix [3, 3] from linear RGB to XYZ, by the chromaticities of its primaries and its white."""
    xyz = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    white_xyz = np.array([white[0] / white[1], 1, (1 - sum(white)) / white[1]])
    return xyz * np.linalg.solve(xyz, white_xyz)


def expected_srgb(levels, primaries, decode):
    """sRGB levels [..., 3] in [0, 255] of levels in a space with white D65."""
    linear = decode(np.asarray(levels, float) / 255)
    return 255 * srgb_encode(linear @ to_xyz(primaries).T @ np.linalg.inv(to_xyz(SRGB_XY)).T)


def gamma(power):
    """A curve with one number, as Adobe RGB has it."""
    return b"curv" + struct.pack(">IIH", 0, 1, round(power * 256)) + b"\0\0"


def table(decode, count):
    """A curve of so many points."""
    points = np.round(65535 * decode(np.linspace(0, 1, count))).astype(">u2").tobytes()
    return b"curv" + struct.pack(">II", 0, count) + points + bytes(len(points) % 4)


def parametric_srgb():
    """The curve of sRGB as version 4 has it."""
    numbers = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    return b"para" + struct.pack(">IHH5i", 0, 3, 0, *(round(number * 65536) for number in numbers))


def rgb_profile(primaries, curve, version=2):
    """A profile of a display with white D65."""
    white = to_xyz(primaries) @ np.ones(3)
    cones = BRADFORD @ white, BRADFORD @ D50
    adaptation = np.linalg.inv(BRADFORD) @ np.diag(cones[1] / cones[0]) @ BRADFORD
    columns = (adaptation @ to_xyz(primaries)).T
    tags = {name: _xyz(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    return _profile(b"mntr", b"RGB ", b"XYZ ", {b"wtpt": _xyz(D50), **tags}, version)


def gray_profile(curve):
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"wtpt": _xyz(D50), b"kTRC": curve})


def cmyk_profile(lab_of_corners):
    """A profile of a printer by the colors (L, a, b) of the 16 corners of CMYK [2, 2, 2, 2, 3], linear in between."""
    lab = np.asarray(lab_of_corners, float).reshape(16, 3)
    encoded = np.round(np.stack([lab[:, 0] * 2.55, lab[:, 1] + 128, lab[:, 2] + 128], -1)).astype(np.uint8)
    identity = np.arange(256, dtype=np.uint8).tobytes()
    matrix = struct.pack(">9i", *(np.eye(3).ravel() * 65536).astype(int))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + identity * 4 + encoded.tobytes() + identity * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"wtpt": _xyz(D50), b"A2B0": lut, b"A2B1": lut})


def lab_to_srgb(lab):
    """sRGB levels in [0, 255] of CIE L*a*b* relative to D50."""
    lightness, a, b = np.moveaxis(np.asarray(lab, float), -1, 0)
    f = np.stack([(lightness + 16) / 116 + a / 500, (lightness + 16) / 116, (lightness + 16) / 116 - b / 200], -1)
    xyz_d50 = D50 * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    white = to_xyz(SRGB_XY) @ np.ones(3)
    cones = BRADFORD @ white, BRADFORD @ D50
    to_d65 = np.linalg.inv(BRADFORD) @ np.diag(cones[0] / cones[1]) @ BRADFORD
    return 255 * srgb_encode(xyz_d50 @ to_d65.T @ np.linalg.inv(to_xyz(SRGB_XY)).T)


def _xyz(value):
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(number * 65536) for number in value))


def _profile(kind, space, connection, tags, version=2):
    text = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(4 + 4 + 2 + 1 + 67)
    if version == 4:
        text = b"mluc" + bytes(4) + struct.pack(">II2s2sII", 1, 12, b"en", b"US", 8, 28) + "test".encode("utf-16-be")
    tags = {b"desc": text, b"cprt": b"text" + bytes(4) + b"none\0", **tags}
    if version == 4:
        tags[b"cprt"] = text
    start, entries, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        entries += name + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    size = start + len(body)
    header = struct.pack(">I4sI4s4s4s", size, b"none", version << 24, kind, space, connection)
    header += struct.pack(">6H", 2025, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + _xyz(D50)[8:]
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + entries + body
