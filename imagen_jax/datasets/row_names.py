"""Which images the rows of a metadata file describe.

A row names its image by a path relative to the metadata file. Paths from other systems and tools nearly fit: with
backslashes, URL escapes, letters decomposed or in another case, without a suffix, or below the folder that the images
were in. They are read where a single image fits; which images these are is a finding, and so are rows that fit none.
"""

from __future__ import annotations

import collections
import posixpath
import urllib.parse
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from imagen_jax.datasets.caption_files import caseless, normalized

_MAX_HINTS = 2  # images that a name may mean


class RowMatches(NamedTuple):
    """The images of rows.

    Attributes:
        images: path of the image by name in the row; each image once.
        inexact: names in rows that are not the path of their image in another Unicode form.
        missing: names in rows that no image, or more than one, fits.
        surplus: names in rows whose image another row fits better, or as well before them.
    """

    images: dict[str, str]
    inexact: list[str]
    missing: list[str]
    surplus: list[str]


class _Fit(NamedTuple):
    """An image that fits the name in a row.

    Attributes:
        image: its path.
        distance: how many better ways to fit the name have been tried.
    """

    image: str
    distance: int


class ImageNames:
    """The files of a folder, found by names that are not exactly theirs.

    Args:
        files: paths that a row may name exactly.
        images: paths of images, which may also be found by a similar name.
    """

    def __init__(self, files: Collection[str], images: Collection[str]) -> None:
        self._files, self._images = files, images
        self._by_form: list[tuple[Callable[[str], str], Mapping[str, list[str]]]] = []

    def match(self, names: Iterable[str], folder: str) -> RowMatches:
        """Returns the images of the rows of a metadata file.

        Args:
            names: the names in the rows.
            folder: of the metadata file, relative to that of the images; "" if it is the same.
        """
        names = list(names)
        exact = {name: path for name in names if (path := posixpath.join(folder, name)) in self._files}
        if len(exact) == len(names):
            return RowMatches(exact, [], [], [])
        others = {name: fit for name in names if name not in exact and (fit := self._similar(name, folder))}
        if not exact and not others:
            others = self._match_moved(names, folder)
        used = set(exact.values())
        images = dict(exact)
        for name in sorted(others, key=lambda name: others[name].distance):
            if others[name].image not in used:
                images[name] = others[name].image
                used.add(others[name].image)
        return RowMatches(
            images,
            [
                name
                for name in others
                if name in images and normalized(posixpath.join(folder, name)) != normalized(images[name])
            ],
            [name for name in names if name not in exact and name not in others],
            [name for name in others if name not in images],
        )

    def hint(self, name: str) -> str:
        """Returns which image the name in a row may mean, as the end of a sentence; "" if there are no images."""
        if not self._images:
            return ""
        stem = caseless(posixpath.basename(posixpath.splitext(_slashes(name))[0]))
        same_stem = [path for path in self._images if caseless(posixpath.basename(posixpath.splitext(path)[0])) == stem]
        if same_stem:
            return f"; {name!r} would fit as {' or '.join(map(repr, sorted(same_stem)[:_MAX_HINTS]))}"
        return f"; the images have names such as {min(self._images)!r}"

    def _match_moved(self, names: list[str], folder: str) -> dict[str, _Fit]:
        """Returns the images of rows none of which fits: below a folder that is not there, or relative to the top.

        The same leading folders are dropped from all names: those that they have in common.
        """
        paths = {name: _slashes(name) for name in names}
        common = _common_folders(paths.values())
        for base in dict.fromkeys((folder, "")):
            for dropped in range(common + 1):
                matched = {}
                for name, path in paths.items():
                    found = self._similar("/".join(path.lstrip("/").split("/")[dropped:]), base)
                    if found:
                        matched[name] = found
                if matched:
                    return matched
        return {}

    def _similar(self, name: str, folder: str) -> _Fit | None:
        """Returns the one image that fits a name best; None if none does."""
        distance = 0
        for variant in _variants(name):
            if variant.startswith(("/", "../")):
                continue
            path = posixpath.join(folder, variant)
            if path in self._images:
                return _Fit(path, distance)
            for form, by_form in self._forms():
                distance += 1
                found = by_form.get(form(path), [])
                if len(found) == 1:
                    return _Fit(found[0], distance)
            distance += 1
        return None

    def _forms(self) -> list[tuple[Callable[[str], str], Mapping[str, list[str]]]]:
        """Returns functions of a name with the images by their results, the most certain first."""
        if not self._by_form:
            for form in (normalized, caseless):
                whole, stems = collections.defaultdict(list), collections.defaultdict(list)
                for path in self._images:
                    whole[form(path)].append(path)
                    stems[form(posixpath.splitext(path)[0])].append(path)
                self._by_form += [(form, whole), (form, stems)]
        return self._by_form


def _variants(name: str) -> Iterator[str]:
    """Yields the paths that a name may stand for, as it is first."""
    yield name
    if "\\" in name:
        yield _slashes(name)
    if "%" in name:
        yield posixpath.normpath(urllib.parse.unquote(_slashes(name)))


def _slashes(name: str) -> str:
    return posixpath.normpath(name.replace("\\", "/"))


def _common_folders(paths: Iterable[str]) -> int:
    """Returns how many leading folders all paths have in common."""
    folders = [path.lstrip("/").split("/")[:-1] for path in paths]
    if not folders:
        return 0
    low, high = min(folders), max(folders)
    return next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
