"""What the tests of conversion share: files of pipelines, read and changed."""

import json

UNET = "unet/diffusion_pytorch_model.safetensors"


def change_json(path, **changes):
    """Changes values of a JSON object in a file; None removes one."""
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in fields.items() if value is not None}))


def pipeline_files(folder):
    """Returns the files of a pipeline with their bytes, by path; not the card, which says who wrote it."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in files.items() if name != "README.md"}
