"""Editing of images by a cascade that was trained to draw them: image to image, inpainting, outpainting and more.

Every stage is given the image, and the mask, at its own size. All of it are requests to the pipeline's own samplers;
the image of a call is, as ever, a function of what is given and of the seed, at any batch size and on any devices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from imagen_jax.errors import ConfigError
from imagen_jax.images.array import Size, format_height_width, to_float
from imagen_jax.images.inputs import as_images, as_masks
from imagen_jax.pipelines.edit_call import EditCall, PreparedEdit, repeat, without_callback
from imagen_jax.pipelines.imagen import ImagenPipeline, ImagenPipelineOutput
from imagen_jax.pipelines.inversion import Inversion, slerp
from imagen_jax.pipelines.prompt_edit import PromptEdit
from imagen_jax.pipelines.request import StageStart
from imagen_jax.pipelines.texts import as_prompts
from imagen_jax.stages.stage_sampler import stage_keys
from imagen_jax.text.encoder import TextCondition


class ImagenEditor:
    """Edits images by the stages of a pipeline.

    All methods take the keyword arguments of `ImagenPipeline.__call__`, such as `seed`, `guidance_scale`,
    `negative_prompt` and `callback`, and raise what it raises. Images are PIL images or arrays uint8 [H, W, C]; with N
    prompts, one image for all of them, or a sequence of N.

    Args:
        pipeline: the cascade, or one stage.

    Attributes:
        pipeline: as given.
    """

    def __init__(self, pipeline: ImagenPipeline) -> None:
        self.pipeline = pipeline

    def image_to_image(
        self,
        image: Any,
        prompt: str | Sequence[str],
        strength: float | Sequence[float] = 0.6,
        **settings: Any,
    ) -> ImagenPipelineOutput:
        """Draws images like an image (SDEdit, arXiv:2108.01073, Alg. 1): from it with noise, at each stage's size.

        Args:
            image: of the aspect of the images to sample, of any size.
            prompt: of the new image.
            strength: in [0, 1], for all stages or for each: how much noise is added, and which share of the steps is
                taken. At 1 the image is not seen, and the result that of the pipeline alone, to the bit; at 0 it is
                returned.
            **settings: see above.

        Raises:
            ConfigError: the image is of another aspect, or cannot be used, or a strength is out of range.
        """
        return self.prepare_image_to_image(image, prompt, strength, **settings).sample(settings.get("callback"))

    def prepare_image_to_image(
        self, image: Any, prompt: str | Sequence[str], strength: float | Sequence[float], **settings: Any
    ) -> PreparedEdit:
        """Returns what `image_to_image` samples."""
        call = EditCall.of(self.pipeline, prompt, settings)
        images = call.fit(as_images(image, call.channels))
        strengths = call.by_stage(strength)
        return call.prepare([StageStart(call.at(images, index), strength=one) for index, one in enumerate(strengths)])

    def inpaint(
        self,
        image: Any,
        mask: Any,
        prompt: str | Sequence[str],
        strength: float | Sequence[float] = 1.0,
        resample: int = 1,
        feather: int | None = None,
        **settings: Any,
    ) -> ImagenPipelineOutput:
        """Draws a part of an image anew, and leaves the rest as it is.

        Args:
            image: of the aspect of the images to sample.
            mask: of the image's size, see `as_masks`: white is drawn anew.
            prompt: of the whole image.
            strength: see `image_to_image`; what is below the mask is not seen at 1.
            resample: how often each step is taken (RePaint, arXiv:2201.09865): parts fit better, and it takes longer.
            feather: pixels inside of the mask over which the new part is faded in; by default 1/32 of the shorter side.
                Pixels outside are those of the image, to the bit, if it has the size of the result.
            **settings: see above.

        Raises:
            ConfigError: as `image_to_image`; the mask has another size, or is all empty or full.
        """
        return self.prepare_inpaint(image, mask, prompt, strength, resample, feather, **settings).sample(
            settings.get("callback")
        )

    def prepare_inpaint(
        self,
        image: Any,
        mask: Any,
        prompt: str | Sequence[str],
        strength: float | Sequence[float] = 1.0,
        resample: int = 1,
        feather: int | None = None,
        **settings: Any,
    ) -> PreparedEdit:
        """Returns what `inpaint` samples."""
        if resample < 1:
            raise ConfigError(f"resample {resample} is not at least 1: it is how often each step is taken")
        call = EditCall.of(self.pipeline, prompt, settings)
        images, masks = as_images(image, call.channels), as_masks(mask)
        if masks.shape[1:3] != images.shape[1:3]:
            raise ConfigError(
                f"mask has {format_height_width(masks.shape[1:3])} pixels and image "
                f"{format_height_width(images.shape[1:3])}: give both in the same size"
            )
        images, masks = call.fit(images), call.repeat(masks)
        strengths = call.by_stage(strength)
        own_masks = [call.mask_at(masks, index) for index in range(len(strengths))]
        known = [call.known_at(images, masks, own, index) for index, own in enumerate(own_masks)]
        starts = [StageStart(*parts, resample) for parts in zip(known, own_masks, strengths, strict=True)]
        return call.prepare(starts, known[-1], call.soften(own_masks[-1], feather))

    def outpaint(
        self,
        image: Any,
        canvas: Size,
        prompt: str | Sequence[str],
        position: Size | None = None,
        resample: int = 1,
        feather: int | None = None,
        **settings: Any,
    ) -> ImagenPipelineOutput:
        """Draws what is around an image.

        On a canvas that is larger than the images of training, a network that embeds positions gets them at the scale
        of training, see `canvas.axis_positions`; spread evenly over the canvas, as in `inpaint`, objects get blurred.

        Args:
            image: of at most the canvas's size.
            canvas: (height, width) of the result in pixels, of any aspect that the stages can sample.
            prompt: of the whole result.
            position: (top, left) of the image on the canvas; by default it is in the middle.
            resample: see `inpaint`.
            feather: see `inpaint`.
            **settings: see above.

        Raises:
            ConfigError: the image is not on the canvas, or fills it.
        """
        return self.prepare_outpaint(image, canvas, prompt, position, resample, feather, **settings).sample(
            settings.get("callback")
        )

    def prepare_outpaint(
        self,
        image: Any,
        canvas: Size,
        prompt: str | Sequence[str],
        position: Size | None = None,
        resample: int = 1,
        feather: int | None = None,
        **settings: Any,
    ) -> PreparedEdit:
        """Returns what `outpaint` samples."""
        images = as_images(image, self.pipeline.stages[-1].stage.config.channels)
        (height, width), (rows, columns) = canvas, images.shape[1:3]
        top, left = ((height - rows) // 2, (width - columns) // 2) if position is None else position
        if min(top, left) < 0 or top + rows > height or left + columns > width:
            raise ConfigError(
                f"an image of {format_height_width((rows, columns))} pixels at ({top}, {left}) is not on a canvas of "
                f"{format_height_width(canvas)}: give a larger canvas, or another position"
            )
        whole = np.pad(
            images, ((0, 0), (top, height - top - rows), (left, width - left - columns), (0, 0)), mode="edge"
        )
        mask = np.full(whole.shape[1:3], True)
        mask[top : top + rows, left : left + columns] = False
        edit = self.prepare_inpaint(
            whole,
            mask,
            prompt,
            resample=resample,
            feather=feather,
            height=height,
            width=width,
            **settings,
        )
        return edit.placed((top, left), (height - top - rows, width - left - columns))

    def variations(self, image: Any, count: int, strength: float | Sequence[float] = 0.5, **settings: Any) -> Any:
        """Returns `count` images like an image, see `image_to_image`; `prompt`, if it is given, says what it shows."""
        if count < 1:
            raise ConfigError(f"count {count} is not at least 1")
        prompt = as_prompts(settings.pop("prompt", ""), "prompt")
        if len(prompt) != 1:
            raise ConfigError(f"prompt has {len(prompt)} texts: give one, of what the image shows")
        return self.image_to_image(image, prompt * count, strength, **settings)

    def upscale(self, image: Any, prompt: str | Sequence[str], **settings: Any) -> ImagenPipelineOutput:
        """Enlarges images by the super-resolution stages alone.

        The first of them is that whose input has the image's size or, of a larger image, the last. Such an image is
        enlarged in tiles of the stage's own size, if its settings have no others.

        Args:
            image: at least as large as the input of a super-resolution stage.
            prompt: what it shows.
            **settings: see above; `aug_level` is the noise added to it first.

        Raises:
            ConfigError: the pipeline has no super-resolution stage, or the image is too small for all.
        """
        return self.prepare_upscale(image, prompt, **settings).sample(settings.get("callback"))

    def prepare_upscale(self, image: Any, prompt: str | Sequence[str], **settings: Any) -> PreparedEdit:
        """Returns what `upscale` samples."""
        stages = [trained.stage for trained in self.pipeline.stages]
        uppers = [index for index, stage in enumerate(stages) if stage.enlarges]
        if not uppers:
            raise ConfigError("the pipeline has no super-resolution stage to enlarge images with: load one")
        images = as_images(image, stages[-1].config.channels)
        size = images.shape[1:3]
        exact = [index for index in uppers if stages[index].low_res_shape[:2] == size]
        first = exact[0] if exact else uppers[-1]
        low_res = stages[first].low_res_shape[:2]
        if size[0] < low_res[0] or size[1] < low_res[1]:
            raise ConfigError(
                f"image has {format_height_width(size)} pixels, fewer than {format_height_width(low_res)}, which the "
                "stage enlarges: give a larger one"
            )
        if not exact and "tile_size" not in settings and not any(stages[first].config.sampling.tile_hw):
            tiles = [stage.image_shape[:2] if index >= first else 0 for index, stage in enumerate(stages)]
            overlaps = [min(stage.image_shape[:2]) // 4 if index >= first else 0 for index, stage in enumerate(stages)]
            settings |= {"tile_size": tiles, "tile_overlap": overlaps}
        pipeline, request = self.pipeline.make_request(prompt, **without_callback(settings))
        count = len(request.texts.prompts)
        low = np.asarray(to_float(jnp.asarray(repeat(images, count, "image"))))
        return PreparedEdit(pipeline, dataclasses.replace(request, low_res=low, first_stage=first))

    def invert(self, image: Any, prompt: str | Sequence[str], exact: bool = True, **settings: Any) -> Inversion:
        """Finds the noise from which sampling with the same prompt and settings returns the image.

        Every stage is inverted at its own size. By default by `bdia`, which is exact up to rounding at any guidance
        scale; otherwise by `ddim`, where each step is found by fixed-point iteration (arXiv:2309.04907).

        Args:
            image: of the aspect of the images to sample.
            prompt: of what it shows.
            exact: whether to use `bdia`.
            **settings: see above; 50 steps by default, and `inversion_iterations=5` for `ddim`.

        Raises:
            ConfigError: as `image_to_image`; the sampler that is given adds noise.
        """
        settings = {"sampler": "bdia" if exact else "ddim", "eta": 0.0, "num_inference_steps": 50} | settings
        if not exact:
            settings = {"inversion_iterations": 5} | settings
        call = EditCall.of(self.pipeline, prompt, settings)
        images = call.fit(as_images(image, call.channels))
        starts = [StageStart(call.at(images, index)) for index in range(len(call.pipeline.stages))]
        arrays = call.pipeline.invert(dataclasses.replace(call.request, starts=starts), call.callback)
        return Inversion(arrays, as_prompts(prompt), without_callback(settings))

    def from_inversion(
        self, inversion: Inversion, prompt: str | Sequence[str] | None = None, **settings: Any
    ) -> ImagenPipelineOutput:
        """Samples from the noise of an inversion: by default, its images come back.

        Args:
            inversion: from `invert`.
            prompt: in place of that of the inversion.
            **settings: in place of those of the inversion, such as `guidance_scale`.
        """
        call = EditCall.of(
            self.pipeline, inversion.prompts if prompt is None else prompt, inversion.settings | settings
        )
        starts = [
            StageStart(
                z=call.repeat(arrays[0], "inversion"),
                before=call.repeat(arrays[1], "inversion") if arrays[1:] else None,
            )
            for arrays in inversion.arrays
        ]
        return call.prepare(starts).sample(call.callback)

    def edit(
        self,
        image: Any,
        source_prompt: str | Sequence[str],
        prompt: str | Sequence[str],
        strength: float | Sequence[float] = 0.5,
        *,
        cross_steps: float = 0.8,
        self_steps: float = 0.4,
        blend: bool = True,
        **settings: Any,
    ) -> ImagenPipelineOutput:
        """Changes what a changed prompt says of an image, and keeps the rest (prompt-to-prompt, arXiv:2208.01626).

        The image, with noise, is walked to with its own prompt, and beside it, with the same noise, to the new one. The
        second walk takes over the attention of the first, and is corrected by its error (virtual inversion,
        arXiv:2312.04965): with equal prompts the image is returned. Where a stage has no attention, the correction and
        the blending act alone.

        Args:
            image: of the aspect of the images to sample, of any size.
            source_prompt: what the image shows.
            prompt: what it is to show, best in the same words, such as "a blue circle" for "a red circle".
            strength: see `image_to_image`.
            cross_steps: in [0, 1]: the first share of the steps in which attention to words that both prompts share,
                or to those in the same place, is that of the source. The layout is kept by it.
            self_steps: in [0, 1]: likewise attention among pixels, in networks that have it.
            blend: whether parts in which both prompts hardly differ are those of the image, to the bit if it has the
                size of the result.
            **settings: see above; by default `ddim` with 16 steps, and guidance from the source prompt to the new one,
                twice as strong as the stages' own.

        Raises:
            ConfigError: as `image_to_image`; a share is out of range, or embeddings are given in place of prompts.
        """
        prepared = self.prepare_edit(
            image,
            source_prompt,
            prompt,
            strength,
            cross_steps=cross_steps,
            self_steps=self_steps,
            blend=blend,
            **settings,
        )
        return prepared.sample(settings.get("callback"))

    def prepare_edit(
        self,
        image: Any,
        source_prompt: str | Sequence[str],
        prompt: str | Sequence[str],
        strength: float | Sequence[float] = 0.5,
        *,
        cross_steps: float = 0.8,
        self_steps: float = 0.4,
        blend: bool = True,
        **settings: Any,
    ) -> PreparedEdit:
        """Returns what `edit` samples: two walks for each image."""
        edit = PromptEdit.of(source_prompt, prompt, cross_steps, self_steps, blend)
        scales = [trained.stage.config.sampling.guidance_scale for trained in self.pipeline.stages]
        call = EditCall.of(self.pipeline, edit.texts, edit.settings(settings, scales))
        images = call.fit(np.repeat(repeat(as_images(image, call.channels), len(edit.prompts), "image"), 2, 0))
        starts = []
        for index, one in enumerate(call.by_stage(strength)):
            sources = call.at(images, index)
            pairs = edit.pairs(call.pipeline.stages[index].stage, call.pipeline.text_encoders[index], sources)
            starts.append(StageStart(sources, strength=one, pairs=pairs))
        return dataclasses.replace(call.prepare(starts), walks=2)

    def reconstruct(self, image: Any, prompt: str | Sequence[str] = "", **settings: Any) -> ImagenPipelineOutput:
        """Returns what a VAE at the base of the cascade keeps of an image: it is encoded and decoded.

        The stages after it enlarge what is decoded.

        Args:
            image: of the aspect of the images to sample, of any size.
            prompt: of the image, or of each; empty for none.
            **settings: see above.

        Raises:
            ConfigError: the base is not a VAE; as `image_to_image`.
        """
        if not self.pipeline.stages[0].stage.is_vae:
            raise ConfigError(
                "reconstruct encodes the image by a VAE, and the base of this cascade is a diffusion model: use "
                "invert, or give a cascade whose base is a VAE"
            )
        call = EditCall.of(self.pipeline, prompt, settings)
        images = call.fit(as_images(image, call.channels))
        start = StageStart(call.at(images, 0))
        request = dataclasses.replace(call.request, starts=[start], last_stage=0)
        ((latents,),) = call.pipeline.invert(request, settings.get("callback"))
        later = [StageStart()] * (len(call.pipeline.stages) - 1)
        return call.prepare([StageStart(z=latents), *later]).sample(settings.get("callback"))

    def interpolate(
        self, first: Any, second: Any, count: int, prompt: str | None = None, **settings: Any
    ) -> ImagenPipelineOutput:
        """Returns `count` images on the way from one to another.

        Args:
            first: a seed, a prompt, or an image. The noise of seeds and of images is interpolated on the sphere, the
                embeddings of prompts linearly.
            second: another one of the same kind.
            count: of images, both ends included; at least 2.
            prompt: of the images, for seeds and for images.
            **settings: see above. Between seeds and prompts, samplers that add noise add that of one seed.

        Raises:
            ConfigError: the ends are not of one kind, or the prompt is missing.
        """
        if count < 2:
            raise ConfigError(f"count {count} is not at least 2: both ends are among the images")
        shares = np.linspace(0.0, 1.0, count, dtype=np.float32)
        if _kind_of_ends(first, second) is not None:
            return self.prepare_interpolate(first, second, shares, prompt, **settings).sample(settings.get("callback"))
        prompt = _shown(prompt)
        # of one seed: the noise that is added to low-resolution images is the same for all
        seed = settings.pop("seed", 0)
        inversion = self.invert([*_as_list(first), *_as_list(second)], [prompt] * 2, seed=[seed] * 2, **settings)
        arrays = [tuple(slerp(array[0], array[1], shares) for array in stage) for stage in inversion.arrays]
        return self.from_inversion(dataclasses.replace(inversion, arrays=arrays), [prompt] * count, seed=[seed] * count)

    def prepare_interpolate(
        self, first: Any, second: Any, shares: np.ndarray, prompt: str | None = None, **settings: Any
    ) -> PreparedEdit:
        """Returns what `interpolate` samples between seeds or prompts, at shares [N] of the way from 0 to 1.

        Raises:
            ConfigError: as `interpolate`; or the ends are images, whose noise has to be found first, by `invert`.
        """
        kind = _kind_of_ends(first, second)
        if kind is None:
            raise ConfigError("the noise of images has to be found first: call interpolate, or give seeds or prompts")
        if kind is str:
            return self._between_prompts(first, second, shares, settings)
        return self._between_seeds(first, second, shares, _shown(prompt), settings)

    def _between_prompts(
        self, first: str, second: str, shares: np.ndarray, settings: Mapping[str, Any]
    ) -> PreparedEdit:
        embeds = []
        for stage in range(len(self.pipeline.stages)):
            ends = self.pipeline.encode_prompt([first, second], stage)
            between = shares[:, None, None]
            mixed = (1 - between) * ends.embeddings[0] + between * ends.embeddings[1]
            # at the ends, the tokens of that prompt alone
            mask = np.where(
                shares[:, None] == 0, ends.mask[0], np.where(shares[:, None] == 1, ends.mask[1], ends.mask.any(0))
            )
            embeds.append(TextCondition(mixed, mask))
        seed = settings.get("seed", 0)
        seeds = seed if isinstance(seed, Sequence) else [seed] * len(shares)
        return EditCall.of(self.pipeline, None, {**settings, "seed": seeds, "prompt_embeds": embeds}).prepare([])

    def _between_seeds(
        self, first: int, second: int, shares: np.ndarray, prompt: str, settings: Mapping[str, Any]
    ) -> PreparedEdit:
        call = EditCall.of(self.pipeline, [prompt] * len(shares), {**settings, "seed": [first] * len(shares)})
        padded, starts = call.pipeline.padded_batch(2, 2), []
        for index in range(len(call.pipeline.stages)):
            keys = stage_keys([first, *[second] * (padded - 1)], [0] * padded, index, call.pipeline.mesh)
            noise = call.pipeline.start_noise(index, keys, call.size_of(index))
            starts.append(StageStart(z=slerp(noise[0], noise[1], shares)))
        return call.prepare(starts)


def _kind_of_ends(first: Any, second: Any) -> type | None:
    """Returns int for seeds, str for prompts, None for images. Raises ConfigError for ends of two kinds."""
    first_kind, second_kind = (
        str if isinstance(end, str) else int if isinstance(end, int) else None for end in (first, second)
    )
    if first_kind is not second_kind:
        raise ConfigError("interpolate needs two seeds, two prompts or two images, and was given one each of two kinds")
    return first_kind


def _shown(prompt: str | None) -> str:
    """Returns the prompt of an interpolation. Raises ConfigError if it is missing."""
    if not isinstance(prompt, str):
        raise ConfigError(f"prompt is {prompt!r}: give the text that the images show")
    return prompt


def _as_list(image: Any) -> list[Any]:
    return list(image) if isinstance(image, Sequence) else [image]
