"""Tar files for tests, good and hostile."""

import io
import json
import tarfile

from PIL import Image


def picture(shade, size=(8, 6), kind="PNG"):
    """An image file, full of one shade."""
    file = io.BytesIO()
    Image.new("RGB", size, (shade % 256, shade // 256 % 256, 0)).save(file, kind)
    return file.getvalue()


def write_tar(path, members, form=tarfile.PAX_FORMAT):
    """A tar file of (name, bytes), or of TarInfo for what is no file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            name, data = member
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def example(number, text=True):
    """The members of one example: a picture, and a caption or metadata."""
    key = f"{number:06d}"
    said = f"picture {number}"
    return [
        (f"{key}.png", picture(number)),
        (f"{key}.txt", said.encode()) if text else (f"{key}.json", json.dumps({"caption": said}).encode()),
    ]


def write_shards(folder, counts):
    """Shards 00000.tar and on, with so many examples each, numbered through."""
    number = 0
    for shard, count in enumerate(counts):
        members = [member for i in range(number, number + count) for member in example(i, text=i % 2 == 0)]
        write_tar(folder / f"{shard:05d}.tar", members)
        number += count
    return folder
