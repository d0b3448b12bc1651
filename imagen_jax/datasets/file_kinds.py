"""Which files of a folder or an archive are images, and why the others are not."""

from __future__ import annotations

import posixpath

from imagen_jax.images.formats import AVIF_SUFFIXES, HEIF_SUFFIXES, image_suffixes

SYSTEM_FILE = "hidden, or a file of the operating system"
SYSTEM_FOLDER = "thumbnails, trash or snapshots of a file server or system, by the name of their folder"

# Folders that file servers and systems make, in lower case; those that begin with a dot are hidden anyway.
_SYSTEM_FOLDERS = {
    *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "@snapshot", "#recycle", "#snapshot"),  # Synology, QNAP
    *("$recycle.bin", "recycler", "system volume information"),  # Windows
    *("network trash folder", "temporary items", "lost+found"),  # macOS, Linux
}
_SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "picasa.ini"}

_HEIF = "HEIC is read where the package pillow-heif is installed: pip install 'imagen_jax[data]'"
_AVIF = "this build of Pillow does not decode AVIF: pip install --upgrade pillow"
_OTHER_IMAGES = "an image format that is not read: convert them to PNG or JPEG"
_VIDEOS = "videos are not read: extract their frames"
_ARCHIVES = "archives are not unpacked: unpack them; tar files of images are read with data.source=webdataset"
_SUFFIXES = {
    _HEIF: HEIF_SUFFIXES,
    _AVIF: AVIF_SUFFIXES,
    _OTHER_IMAGES: (
        *(".3fr", ".ai", ".arw", ".cr2", ".cr3", ".crw", ".dcm", ".dcr", ".dds", ".djvu", ".dng", ".emf", ".eps"),
        *(".erf", ".exr", ".fff", ".hdr", ".icns", ".ico", ".iiq", ".j2k", ".jls", ".jp2", ".jpf", ".jpm", ".jpx"),
        *(".jxl", ".jxr", ".kdc", ".kra", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pbm", ".pcx", ".pdf"),
        *(".pef", ".pgm", ".pnm", ".ppm", ".ps", ".psb", ".psd", ".ptx", ".qoi", ".raf", ".raw", ".rw2", ".rwl"),
        *(".sgi", ".sr2", ".srf", ".srw", ".svg", ".svgz", ".tga", ".wdp", ".wmf", ".x3f", ".xcf"),
    ),
    _VIDEOS: (
        *(".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".webm"),
        ".wmv",
    ),
    _ARCHIVES: (".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip", ".zst"),
}
_REASONS = {suffix: reason for reason, suffixes in _SUFFIXES.items() for suffix in suffixes}


def is_hidden(name: str) -> bool:
    """Returns whether a file, or a folder on its path, is hidden; macOS' copies of attributes count as hidden."""
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def system_reason(name: str) -> str:
    """Returns why a path belongs to a system or a file server; "" if it does not.

    A hidden folder does not make its files hidden: see `is_hidden`.
    """
    *folders, file = name.split("/")
    if file.startswith(".") or file.lower() in _SYSTEM_FILES or "__MACOSX" in folders:
        return SYSTEM_FILE
    return SYSTEM_FOLDER if any(folder.lower() in _SYSTEM_FOLDERS for folder in folders) else ""


def is_unread(name: str) -> bool:
    """Returns whether the suffix of a file is one of media that are not read, with what is installed."""
    suffix = posixpath.splitext(name)[1].lower()
    return suffix in _REASONS and suffix not in image_suffixes()


def unread_reason(name: str) -> str:
    """Returns why a file with another suffix than those of images is not read."""
    suffix = posixpath.splitext(name)[1].lower()
    if suffix in _REASONS:
        return _REASONS[suffix]
    return f"files that end in {suffix} are not read" if suffix else "files without a suffix are not read"
