"""What clients send to edit an image, and how it becomes a request of the engine with the files to keep."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import re
from collections.abc import Callable

import numpy as np
from PIL import Image

from imagen_jax.diffusion.keys import MAX_SEED
from imagen_jax.images import png
from imagen_jax.images.array import Size
from imagen_jax.images.inputs import as_masks
from imagen_jax.images.masks import shrink_mask
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.pipelines.prompt_edit import default_settings
from imagen_jax.serving.http_errors import HttpError, shown
from imagen_jax.serving.http_limits import HttpLimits
from imagen_jax.serving.jobs import EditInputs, EditRequest, JobRequest
from imagen_jax.serving.requests import EditBody, check_prompt, check_range
from imagen_jax.serving.uploads import read_image, read_mask

DEFAULT_STRENGTH = {"image_to_image": 0.6, "variations": 0.5, "edit": 0.5}  # 1 for others
# the fields of each kind besides the image
_FIELDS: dict[str, tuple[str, ...]] = {
    "image_to_image": ("strength",),
    "inpaint": ("mask", "strength", "resample", "feather"),
    "outpaint": ("resample", "feather", "position"),
    "variations": ("strength",),
    "upscale": (),
    "edit": ("strength", "source_prompt"),
    "interpolate": ("ends",),
}
# what a kind cannot do without besides the image, and what to do where it is missing
_NEEDED = {
    "inpaint": ("mask", "say by a mask what is drawn anew"),
    "edit": ("source_prompt", "say what the image shows, in the words of the prompt"),
    "interpolate": ("ends", "give a list of two seeds or two prompts"),
}
_MAX_RESAMPLE = 16
_NAME = re.compile(r"(?:/v1/images/)?([A-Za-z0-9_-]{1,100}\.png)(?:\?[^?]*)?")
_DATA = re.compile(r"data:image/(?:png|jpeg);base64,")


@dataclasses.dataclass(frozen=True)
class EditFiles:
    """The files of an edit, as they were sent; no image where there are ends."""

    image: bytes | None
    mask: bytes | None = None


def read_files(body: EditBody, find: Callable[[str], bytes | None]) -> EditFiles:
    """Returns the files of an edit; `find` returns that of an image of the server by its name, or None.

    Raises:
        HttpError: one is not base64, or there is no image of the name.
    """
    mask = None if body.mask is None else _decoded(body.mask, "edit.mask")
    if body.image is None:
        return EditFiles(None, mask)
    match = _NAME.fullmatch(body.image)
    if match is None:
        return EditFiles(_decoded(body.image, "edit.image"), mask)
    image = find(match[1])
    if image is None:
        raise HttpError(
            404, "edit.image names no image of this server: its job has its address", "edit.image", "no_such_image"
        )
    return EditFiles(image, mask)


def _decoded(text: str, name: str) -> bytes:
    match = _DATA.match(text)
    try:
        return base64.b64decode(text[match.end() if match else 0 :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise HttpError(400, f"{name} is {shown(text)}: give a PNG or JPEG in base64", name) from error


def with_edit(
    request: JobRequest, body: EditBody, files: EditFiles, pipeline: ImagenPipeline, limits: HttpLimits
) -> tuple[JobRequest, EditInputs | None]:
    """Returns a request that edits, and what to keep of its files: of at most the size that is needed.

    Args:
        request: of the job.
        body: how to edit.
        files: to edit.
        pipeline: the cascade.
        limits: of images.

    Raises:
        HttpError: a value is out of range, or a file is missing or cannot be used.
        ConfigError: likewise of the mask.
    """
    _check(body, files, limits)
    if body.kind == "interpolate":
        return _with_ends(request, body, limits), None
    assert files.image is not None
    if body.kind == "edit":
        request = _with_source(request, body, pipeline, limits)
    channels = pipeline.stages[-1].stage.config.channels
    uploaded = read_image(files.image, "edit.image", channels, limits)
    size = None
    if body.kind == "upscale":
        _check_enlarged(uploaded.pixels.shape, pipeline, limits)
    elif body.kind != "outpaint":
        size = pipeline.as_size(request.height, request.width) or pipeline.image_size
    mask, is_kept = None, np.full(uploaded.pixels.shape[:2], True)
    if files.mask is not None:
        pixels = read_mask(files.mask, "edit.mask", limits)
        if pixels.shape != uploaded.pixels.shape[:2]:
            raise HttpError(400, "edit.mask has another size than edit.image: give both in the same size", "edit.mask")
        as_masks(pixels, "edit.mask")  # neither empty nor full
        mask, is_kept = png.encode(_fit_mask(pixels, size)[..., None]), pixels == 0
    if uploaded.transparent is not None and (uploaded.transparent & is_kept).any():
        raise HttpError(
            400,
            "edit.image has transparent areas that are not drawn anew: put it on a background, or mask them",
            "edit.image",
        )
    edit = EditRequest(
        body.kind,
        hashlib.sha256(files.image).hexdigest(),
        None if files.mask is None else hashlib.sha256(files.mask).hexdigest(),
        _strengths(body, len(pipeline.stages)),
        body.resample,
        body.feather,
        body.position,
        body.source_prompt,
    )
    return dataclasses.replace(request, edit=edit), EditInputs(png.encode(_fit(uploaded.pixels, size)), mask)


def _check(body: EditBody, files: EditFiles, limits: HttpLimits) -> None:
    """Raises HttpError for what does not belong to an edit, or is missing."""
    given = {"mask": files.mask, "source_prompt": body.source_prompt, "ends": body.ends}
    if body.kind in _NEEDED and given[_NEEDED[body.kind][0]] is None:
        name, advice = _NEEDED[body.kind]
        raise HttpError(400, f"edit.{name} is missing: {advice}", f"edit.{name}")
    if files.image is None and body.kind != "interpolate":
        text = "edit.image is missing: give a PNG or JPEG in base64, or the name of an image of this server"
        raise HttpError(400, text, "edit.image")
    if files.image is not None and body.kind == "interpolate":
        raise HttpError(
            400, "edit.image has no meaning for interpolate: leave it out, and give edit.ends", "edit.image"
        )
    own = _FIELDS[body.kind]
    for name in dict.fromkeys(name for names in _FIELDS.values() for name in names):
        if name in body.model_fields_set and getattr(body, name) is not None and name not in own:
            raise HttpError(400, f"edit.{name} has no meaning for {body.kind}: leave it out", f"edit.{name}")
    check_range("edit.resample", body.resample, 1, _MAX_RESAMPLE)
    if body.feather is not None:
        check_range("edit.feather", body.feather, 0, limits.side)


def _with_source(request: JobRequest, body: EditBody, pipeline: ImagenPipeline, limits: HttpLimits) -> JobRequest:
    """Returns a request whose prompts change what `source_prompt` says, with the settings of such. Raises HttpError."""
    source = body.source_prompt or ""
    check_prompt(source, "edit.source_prompt", limits)
    for prompt in request.prompts:
        check_prompt(prompt, "prompts", limits)
        if prompt == source:
            text = "edit.source_prompt is the same as the prompt, which changes nothing: change the prompt"
            raise HttpError(400, text, "edit.source_prompt")
    defaults = default_settings([trained.stage.config.sampling.guidance_scale for trained in pipeline.stages])
    scales = defaults.pop("guidance_scale")
    settings = [
        {**defaults, "guidance_scale": scale} | given for scale, given in zip(scales, request.settings, strict=True)
    ]
    return dataclasses.replace(request, settings=settings)


def _with_ends(request: JobRequest, body: EditBody, limits: HttpLimits) -> JobRequest:
    """Returns a request for images between two ends. Raises HttpError."""
    if request.count < 2:
        text = f"count is {request.count}: give 2 or more, as both ends are among the images"
        raise HttpError(400, text, "count")
    if len(request.prompts) > 1:
        text = f"prompts has {len(request.prompts)} prompts: give one for interpolate, or two as edit.ends"
        raise HttpError(400, text, "prompts")
    prompt, first, ends = request.prompts[0], request.seeds[0], list(body.ends)
    if all(isinstance(end, int) or (end.isascii() and end.isdecimal() and len(end) <= 20) for end in ends):
        ends = [_read_seed(end, f"edit.ends[{index}]") for index, end in enumerate(ends)]
        if not request.seeds_are_random:
            raise HttpError(400, "seeds has no meaning where edit.ends are seeds: leave it out", "seeds")
        check_prompt(prompt, "prompts", limits)
        first = ends[0]
    else:
        if prompt.strip():
            raise HttpError(400, "prompts has no meaning where edit.ends are prompts: give an empty one", "prompts")
        for index, end in enumerate(ends):
            check_prompt(end, f"edit.ends[{index}]", limits)
        prompt = " → ".join(ends)
    edit = EditRequest("interpolate", None, strength=[1.0] * len(request.settings), ends=ends)
    # of one seed: the noise that samplers and low-resolution images get is the same for all
    return dataclasses.replace(request, prompts=[prompt], seeds=[first] * request.count, edit=edit)


def _read_seed(end: int | str, name: str) -> int:
    """Returns a seed that is an end. Raises HttpError if it is out of range."""
    if not 0 <= int(end) <= MAX_SEED:
        raise HttpError(400, f"{name} is {shown(end)}: give an integer in [0, 2^64)", name)
    return int(end)


def _strengths(body: EditBody, stages: int) -> list[float]:
    """Returns the strength of each stage. Raises HttpError."""
    given = DEFAULT_STRENGTH.get(body.kind, 1.0) if body.strength is None else body.strength
    strengths = [float(one) for one in (given if isinstance(given, list) else [given] * stages)]
    if len(strengths) != stages:
        text = f"edit.strength has {len(strengths)} numbers for {stages} stages: give one for all, or one for each"
        raise HttpError(400, text, "edit.strength")
    if not all(0 <= one <= 1 for one in strengths) or not any(strengths):
        text = f"edit.strength is {shown(given)}: give numbers from 0 to 1, not all of them 0, which changes nothing"
        raise HttpError(400, text, "edit.strength")
    return strengths


def _check_enlarged(shape: tuple[int, ...], pipeline: ImagenPipeline, limits: HttpLimits) -> None:
    """Raises HttpError if an image to enlarge would have sides beyond the limits."""
    exact = {trained.stage.low_res_shape[:2] for trained in pipeline.stages if trained.stage.enlarges}
    if tuple(shape[:2]) in exact or not exact:
        return
    last = pipeline.stages[-1].stage
    factor = last.image_shape[0] // max(1, last.low_res_shape[0])
    if max(shape[:2]) * factor > limits.side:
        raise HttpError(
            400,
            f"edit.image has {shape[0]:,}×{shape[1]:,} pixels, which become {factor} times as many on a side: give at "
            f"most {limits.side // factor:,}",
            "edit.image",
        )


def _fit(pixels: np.ndarray, size: Size | None) -> np.ndarray:
    """Returns an image at a (height, width), if it has that aspect; what has another is refused by the engine."""
    if size is None or pixels.shape[:2] == size or pixels.shape[0] * size[1] != pixels.shape[1] * size[0]:
        return pixels
    planes = np.moveaxis(pixels, -1, 0)
    resized = [Image.fromarray(plane).resize(size[::-1], Image.Resampling.BILINEAR) for plane in planes]
    return np.stack([np.asarray(plane) for plane in resized], -1)


def _fit_mask(mask: np.ndarray, size: Size | None) -> np.ndarray:
    """Returns a mask likewise: no pixel that is kept shows anything of what it covers."""
    if size is None or mask.shape == size or mask.shape[0] * size[1] != mask.shape[1] * size[0]:
        return mask
    if mask.shape[0] < size[0]:
        return np.asarray(Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST))
    return shrink_mask(mask[None, ..., None], size)[0, ..., 0]
