"""Which caption files belong to which images of a folder, by their names.

The captions of `a/fox.jpg` are in `a/fox.txt` or `a/fox.jpg.txt`. Names that differ in upper and lower case, or in the
Unicode form that macOS decomposes letters to, belong together where only one pair can be meant.
"""

from __future__ import annotations

import collections
import posixpath
import unicodedata
from collections.abc import Collection, Iterable, Sequence


def normalized(name: str) -> str:
    """Returns a name in Unicode's composed form: macOS stores "ü" as "u" and a mark, others as one character."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def caseless(name: str) -> str:
    """Returns a name in a form in which upper and lower case, and the Unicode forms of a letter, are equal."""
    return normalized(normalized(name).casefold())


class CaptionFiles:
    """Caption files by image.

    Args:
        images: the images.
        files: all files of the folder.
        suffixes: of caption files, such as ".txt"; the first that an image has counts.
    """

    def __init__(self, images: Iterable[str], files: Collection[str], suffixes: Sequence[str]) -> None:
        self._files, self._suffixes = files, suffixes
        self._others: dict[str, str] = {}  # for images without a caption file of exactly their name
        used: set[str] = set()
        without = []
        for image in images:
            file = self._exact(image)
            if file:
                used.add(file)
            else:
                without.append(image)
        endings = tuple(caseless(suffix) for suffix in suffixes)
        unused = [name for name in files if name not in used and caseless(name).endswith(endings)]
        if unused and without:
            self._others = _match(without, unused, suffixes)
        self.unused = sorted(set(unused) - set(self._others.values()))

    def file(self, image: str) -> str | None:
        """Returns the caption file of an image; None if it has none."""
        return self._exact(image) or self._others.get(image)

    def surplus(self, images: Iterable[str], captioned: Collection[str]) -> list[str]:
        """Returns the unused files with the names of images all of which have other captions.

        Args:
            images: the images.
            captioned: those that have captions.
        """
        stems: dict[bool, set[str]] = {True: set(), False: set()}
        for image in images if self.unused else ():
            stems[image in captioned].update(map(caseless, _stems(image)))
        certain = stems[True] - stems[False]
        endings = [caseless(suffix) for suffix in self._suffixes]
        return [
            file for file in self.unused if any(caseless(file).removesuffix(ending) in certain for ending in endings)
        ]

    def _exact(self, image: str) -> str | None:
        names = (stem + suffix for suffix in self._suffixes for stem in _stems(image))
        return next((name for name in names if name in self._files), None)


def _match(images: Sequence[str], files: Sequence[str], suffixes: Sequence[str]) -> dict[str, str]:
    """Returns the caption files of images whose name differs from theirs in case or Unicode form.

    The stem in its own case counts first: `IMG_1.TXT` belongs to `IMG_1.JPG` rather than to `img_1.png`. A pair is
    certain where one file and one stem meet.
    """
    matched: dict[str, str] = {}
    for form in (normalized, caseless):
        stems = collections.defaultdict(set)
        for image in images:
            for stem in _stems(image):
                stems[form(stem)].add(stem)
        for suffix in suffixes:
            by_form = collections.defaultdict(list)
            for file in files:
                if caseless(file[-len(suffix) :]) == caseless(suffix):
                    by_form[form(file[: -len(suffix)])].append(file)
            for image in images:
                for stem in _stems(image):
                    candidates = by_form.get(form(stem), [])
                    if len(candidates) == 1 and len(stems[form(stem)]) == 1:
                        matched.setdefault(image, candidates[0])
        images = [image for image in images if image not in matched]
        files = sorted(set(files) - set(matched.values()))
    return matched


def _stems(image: str) -> tuple[str, str]:
    """Returns what a caption file's name without its suffix may be."""
    return posixpath.splitext(image)[0], image
