"""One call of the editor: a pipeline, a request for it, and images and masks at the size of each of its stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.errors import ConfigError
from imagen_jax.images.array import Size, format_height_width, scale_size, to_float
from imagen_jax.images.masks import feather_mask, shrink_mask
from imagen_jax.images.resize import resize
from imagen_jax.pipelines.canvas import canvas_positions
from imagen_jax.pipelines.imagen import ImagenPipeline, ImagenPipelineOutput
from imagen_jax.pipelines.request import Callback, SampleRequest, StageStart

_FEATHER = 1 / 32  # of the shorter side


@dataclasses.dataclass(frozen=True)
class PreparedEdit:
    """An edit that is ready to be sampled: by `sample`, or in one batch with others, of whose images each is finished.

    Attributes:
        pipeline: with the settings of the call.
        request: of N images, with what the stages begin with.
        known: the pixels that are kept, float32 [N, H, W, C] in [-1, 1], of the size of the result; None for none.
        drawn: the share of new pixels, float32 [N, H, W, 1] in [0, 1]; None for 1.
        walks: how many images of the request an image of the result needs, of which the last is the result.
    """

    pipeline: ImagenPipeline
    request: SampleRequest
    known: np.ndarray | None = None
    drawn: np.ndarray | None = None
    walks: int = 1

    @property
    def size(self) -> Size:
        """(height, width) of the result."""
        last, request = self.pipeline.image_size, self.request
        if request.low_res is None:
            return last if request.size is None else request.size
        low_res = self.pipeline.stages[request.first_stage].stage.low_res_shape
        return scale_size(request.low_res.shape[1:3], low_res[:2], last)

    def sample(self, callback: Callback | None = None) -> ImagenPipelineOutput:
        """Samples the images."""
        images = [samples[self.walks - 1 :: self.walks] for samples in self.pipeline.sample_all(self.request, callback)]
        return self.pipeline.checked([*images[:-1], self.finish(images[-1])], self.request.batch_size)

    def placed(self, before: Size, after: Size) -> PreparedEdit:
        """Returns the edit of a canvas with `canvas_positions`, for networks that embed positions and are outgrown.

        Args:
            before: new pixels (above, left) of what is given.
            after: new pixels (below, right) of it.
        """
        starts = []
        for start, trained in zip(self.request.starts, self.pipeline.stages, strict=True):
            assert start.image is not None  # what is given
            canvas, own = start.image.shape[1:3], trained.stage.image_shape[:2]
            if trained.stage.config.model.positions and (canvas[0] > own[0] or canvas[1] > own[1]):
                ends = (scale_size(new, self.size, canvas) for new in (before, after))
                start = dataclasses.replace(start, positions=canvas_positions(len(start.image), canvas, own, *ends))
            starts.append(start)
        return dataclasses.replace(self, request=dataclasses.replace(self.request, starts=starts))

    def finish(self, images: np.ndarray) -> np.ndarray:
        """Returns samples of the last stage [N, H, W, C] with the known pixels in them."""
        if self.known is None or self.drawn is None:
            return images
        highest = np.iinfo(images.dtype).max
        kept = self.drawn * images + (1 - self.drawn) * (self.known + 1) * (highest / 2)
        return np.round(np.clip(kept, 0, highest)).astype(images.dtype)


@dataclasses.dataclass(frozen=True)
class EditCall:
    """A pipeline with settings, a request for it, and how images are prepared for both."""

    pipeline: ImagenPipeline
    request: SampleRequest
    callback: Callback | None

    @classmethod
    def of(cls, pipeline: ImagenPipeline, prompt: Any, settings: Mapping[str, Any]) -> EditCall:
        made, request = pipeline.make_request(prompt, **without_callback(settings))
        made.check(request)
        return cls(made, request, settings.get("callback"))

    @property
    def channels(self) -> int:
        return self.pipeline.stages[-1].stage.config.channels

    @property
    def count(self) -> int:
        return len(self.request.texts.prompts)

    @property
    def size(self) -> Size:
        """(height, width) of the last stage's images."""
        return self.pipeline.image_size if self.request.size is None else self.request.size

    def size_of(self, index: int) -> Size:
        """Returns (height, width) of the images of a stage."""
        return scale_size(self.size, self.pipeline.image_size, self.pipeline.stages[index].stage.image_shape[:2])

    def by_stage(self, strength: float | Sequence[float]) -> list[float]:
        """Returns the strength of each stage."""
        stages = len(self.pipeline.stages)
        strengths = [float(one) for one in strength] if isinstance(strength, Sequence) else [float(strength)] * stages
        if len(strengths) != stages:
            raise ConfigError(
                f"strength has {len(strengths)} values for {stages} stages: give one for all, or one for each"
            )
        for one in strengths:
            if not 0 <= one <= 1:
                raise ConfigError(f"strength {one} is not in [0, 1]: 0 returns the image, 1 draws without it")
        return strengths

    def repeat(self, images: np.ndarray, name: str = "mask") -> np.ndarray:
        """Returns an array for each prompt, see `repeat`."""
        return repeat(images, self.count, name)

    def fit(self, images: np.ndarray) -> np.ndarray:
        """Returns an image for each prompt; raises ConfigError if their aspect is not that of the result."""
        (rows, columns), (height, width) = images.shape[1:3], self.size
        if rows * width != columns * height:
            raise ConfigError(
                f"image has {format_height_width((rows, columns))} pixels, which is not the aspect of the "
                f"{format_height_width(self.size)} to sample: crop it, or give height and width"
            )
        return self.repeat(images, "image")

    def at(self, images: np.ndarray, index: int) -> np.ndarray:
        """Returns uint8 images as a stage gets them: of its size, in [-1, 1]."""
        return np.asarray(resize(to_float(jnp.asarray(images)), *self.size_of(index)))

    def known_at(self, images: np.ndarray, masks: np.ndarray, own_masks: np.ndarray, index: int) -> np.ndarray:
        """Returns images as `at` does, but for known pixels, which show nothing of what is to be drawn anew.

        A pixel of a smaller image has something of all those near it: here, of those that are known.

        Args:
            images: as they were given.
            masks: of the same size.
            own_masks: at the size of the stage, from `mask_at`.
            index: of the stage.
        """
        known, size = jnp.asarray(masks == 0, jnp.float32), self.size_of(index)
        seen = resize(to_float(jnp.asarray(images)) * known, *size)
        share = resize(known, *size)
        is_known = (own_masks == 0) & (np.asarray(share) > 0)
        return np.where(is_known, np.asarray(seen / jnp.maximum(share, 1e-6)), self.at(images, index))

    def mask_at(self, masks: np.ndarray, index: int) -> np.ndarray:
        """Returns masks at the size of a stage."""
        size = self.size_of(index)
        if masks.shape[1] < size[0]:
            masks = np.asarray(jax.image.resize(masks, (len(masks), *size, 1), "nearest"))
        return shrink_mask(masks, size)

    def prepare(
        self, starts: Sequence[StageStart], known: np.ndarray | None = None, drawn: np.ndarray | None = None
    ) -> PreparedEdit:
        """Returns the request with the start of each stage, and what is kept of an image, see `PreparedEdit`."""
        return PreparedEdit(self.pipeline, dataclasses.replace(self.request, starts=starts), known, drawn)

    def soften(self, masks: np.ndarray, feather: int | None) -> np.ndarray:
        """Returns masks of the size of the result with a soft border inside of them."""
        if feather is None:
            feather = round(min(self.size) * _FEATHER)
        if feather < 0:
            raise ConfigError(f"feather {feather} is not at least 0: it is a number of pixels")
        return feather_mask(masks, feather)


def repeat(images: np.ndarray, count: int, name: str) -> np.ndarray:
    """Returns `count` images, from so many or from one."""
    if len(images) not in (1, count):
        raise ConfigError(f"{name} has {len(images)} images for {count} prompts: give one for all, or one for each")
    return images if len(images) == count else np.repeat(images, count, 0)


def without_callback(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a call for a request, which takes no callback."""
    return {name: value for name, value in settings.items() if name != "callback"}
