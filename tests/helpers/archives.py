"""Tar files for tests, valid and hostile."""

import io
import json
import tarfile

from PIL import Image


def encode_image(shade, size=(8, 6), kind="PNG"):
    """Returns an image file of a single shade."""
    file = io.BytesIO()
    Image.new("RGB", size, (shade % 256, shade // 256 % 256, 0)).save(file, kind)
    return file.getvalue()


def write_tar(path, members, form=tarfile.PAX_FORMAT):
    """Writes a tar file of members (name, bytes), or TarInfo for members that are not files."""
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
    """Returns the members of an example: an image, and a text or metadata with its caption."""
    key = f"{number:06d}"
    caption = f"picture {number}"
    return [
        (f"{key}.png", encode_image(number)),
        (f"{key}.txt", caption.encode()) if text else (f"{key}.json", json.dumps({"caption": caption}).encode()),
    ]


def write_shards(folder, counts):
    """Writes shards 00000.tar, … with the given numbers of examples, which are numbered consecutively."""
    number = 0
    for shard, count in enumerate(counts):
        members = [member for i in range(number, number + count) for member in example(i, text=i % 2 == 0)]
        write_tar(folder / f"{shard:05d}.tar", members)
        number += count
    return folder
