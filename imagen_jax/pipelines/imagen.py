"""The text-to-image pipeline: trained stages chained from prompts to images.

The image of sample i is a function of (seed, i), its prompt and the weights: not of the batch it is sampled in, nor of
the mesh. Images stay on the devices, in float, from stage to stage.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import importlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from imagen_jax.config.schema import SamplingConfig
from imagen_jax.diffusion.keys import MAX_INDEX
from imagen_jax.diffusion.samplers import SamplerState
from imagen_jax.errors import ConfigError
from imagen_jax.images.array import Size, image_dtype, to_uint
from imagen_jax.io.paths import as_path
from imagen_jax.parallel import multihost, runtime
from imagen_jax.parallel.axes import IMAGE, Axes
from imagen_jax.parallel.batching import pad_batch, padded_size, shard_host_batch
from imagen_jax.parallel.mesh import make_mesh, num_batch_shards
from imagen_jax.parallel.sharding import param_shardings
from imagen_jax.pipelines.adapters import Adapters
from imagen_jax.pipelines.draft import DRAFT_STAGE, Draft, open_draft
from imagen_jax.pipelines.find_stages import find_stages
from imagen_jax.pipelines.loading import (
    TrainedStage,
    check_chain,
    learn,
    learned_words,
    load_stage,
    make_encoders,
    read_chain,
    read_choices,
)
from imagen_jax.pipelines.request import (
    Callback,
    Rows,
    SampleRequest,
    SamplingProgress,
    StageStart,
)
from imagen_jax.pipelines.safety_checker import FROM_CASCADE, SafetyChecker, SafetyReport, open_checker
from imagen_jax.pipelines.sizes import base_size, check_size
from imagen_jax.pipelines.texts import as_prompts, encode_batch, make_texts, required
from imagen_jax.stages.samplers import AnySampler, make_stage_sampler
from imagen_jax.stages.sampling import PAIRS_AXES, SAMPLING_MESH, Pairs
from imagen_jax.stages.stage import Stage
from imagen_jax.stages.stage_sampler import StageRequest, stage_keys, strength_steps
from imagen_jax.stages.text import PromptEncoder
from imagen_jax.stages.vae import LATENT_AXES
from imagen_jax.text.encoder import TextCondition

_MAX_SAMPLERS = 64  # with other settings, that are kept
_SKIPPED_SIZE = 2  # sizes of small batches are powers of two but this one: few programs, little padding

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ImagenPipelineOutput:
    """What a call of the pipeline returns.

    Attributes:
        images: the images of the last stage, uint8 [N, H, W, C]; uint16 for stages that sample 16 bits.
        stages: the images of every stage, base first; the last entry is `images`.
        safety: which of them the safety checker has flagged, and are black; None where none has looked at them.
    """

    images: np.ndarray
    stages: list[np.ndarray]
    safety: SafetyReport | None = None


class ImagenPipeline:
    """A cascade of trained stages, from the smallest image to the largest (arXiv:2205.11487, Section 2).

    Args:
        stages: the stages with their weights, base first.
        mesh: the devices that sample; batches are split over all of them. By default all devices, each with full
            networks.
        encoders: the text encoder of each stage, the same object for stages that share it; None without any, for
            `prompt_embeds`. By default those that the configs name.
        safety_checker: makes images black that it flags; None for none.

    Attributes:
        stages: as given.
        mesh: as given.
        safety_checker: as given.

    Raises:
        ConfigError: the stages do not chain, or their sampling settings cannot work.
    """

    def __init__(
        self,
        stages: Sequence[TrainedStage],
        mesh: Mesh | None = None,
        encoders: Sequence[PromptEncoder | None] | None = None,
        safety_checker: SafetyChecker | None = None,
    ) -> None:
        check_chain([trained.stage.config for trained in stages])
        runtime.enable_compilation_cache()
        self.stages = tuple(stages)
        self.mesh = make_mesh(SAMPLING_MESH) if mesh is None else mesh
        if encoders is None:
            encoders = make_encoders([trained.stage.config for trained in stages], self.mesh)
        self._own_encoders = tuple(learn(encoders, functools.partial(learned_words, self.stages)))
        self._encoders = self._own_encoders
        self.safety_checker = safety_checker
        self._progress: dict[str, Any] = {}
        self._samplers = [make_stage_sampler(trained.stage, self.mesh) for trained in self.stages]
        self._adapters = Adapters(self.stages)
        self._by_mesh: dict[Mesh, ImagenPipeline] = {}  # this pipeline on other devices
        self._drafts: dict[str, Draft] = {}  # by name
        # samplers with other settings, by stage and settings; shared by all pipelines made from this one
        self._cache: collections.OrderedDict[tuple[int, SamplingConfig], AnySampler] = collections.OrderedDict()
        self._cache_lock = threading.Lock()

    @classmethod
    def from_pretrained(
        cls,
        stages: str | Path | Sequence[str | Path],
        mesh: Mesh | Mapping[str, int] | None = None,
        sampling: Sequence[Mapping[str, Any]] | None = None,
        *,
        text_encoder: bool = True,
        text_cache: str | Path | None = None,
        weights: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        safety_checker: SafetyChecker | str | Path | None = FROM_CASCADE,
    ) -> ImagenPipeline:
        """Loads a cascade, also while it is trained. Weights of text encoders are loaded at first use.

        Args:
            stages: a cascade: one that ships with the package, "shapes"; a name on the Hugging Face Hub, "ORG/NAME" or
                "ORG/NAME@REVISION"; a folder of `imagen publish` or `save_pretrained`, also in a bucket; a folder of
                stage folders, such as "runs/demo". Or several such names, or stage folders, base first.
            mesh: the devices that sample, as a mesh or as sizes of its axes, such as `{"data": 2, "fsdp": 4}`.
            sampling: for each stage, sampling settings that replace those of its config.
            text_encoder: whether to open the text encoders; without them, calls need `prompt_embeds`.
            text_cache: a folder of embeddings from `imagen embed`: prompts in it are looked up, not encoded.
            weights: which weights to load, such as `{"step": 1000, "kind": "raw"}`, for all stages or for each; by
                default the EMA, `"ema"`, of the newest checkpoint, or what was published.
            safety_checker: "cascade" for that of the cascade, if it has one; None for none; or another, or its folder.

        Raises:
            ConfigError: a name leads nowhere, a folder holds no stage, or no checkpoint of the given step, a published
                file is damaged, the stages do not chain, or a text encoder cannot be opened.
            TrainingError: every checkpoint of a stage is damaged.
        """
        folders = find_stages(stages, text_encoder=text_encoder, safety_checker=safety_checker == FROM_CASCADE)
        choices = read_choices(weights, len(folders))
        mesh = _as_mesh(mesh)
        configs = read_chain(folders, sampling)
        encoders: Sequence[PromptEncoder | None] = [None] * len(folders)
        if text_encoder:
            encoders = make_encoders(configs, mesh, text_cache)
        loaded = [
            load_stage(folder, config, mesh, encoder.width if encoder else None, choice)
            for folder, config, encoder, choice in zip(folders, configs, encoders, choices, strict=True)
        ]
        return cls(loaded, mesh, encoders, open_checker(safety_checker, folders, mesh))

    def save_pretrained(self, folder: str | Path, **settings: Any) -> None:
        """Publishes the cascade, as `imagen publish` does: `from_pretrained` loads the folder, here and elsewhere.

        Args:
            folder: a new folder, also in a bucket.
            **settings: attributes of `publishing.publish.PublishSettings`, such as `license="apache-2.0"`,
                `push="ORG/NAME"` or `overwrite=True`.

        Raises:
            ConfigError: a setting cannot work, or the folder has other files.
            TypeError: a setting is unknown.
        """
        # not by an import: the room is above this one, and sees pipelines as any caller does
        publishing = importlib.import_module("imagen_jax.publishing.publish")
        publishing.publish(self, folder, publishing.PublishSettings(**settings))

    def load_lora(
        self, path: str | Path, scale: float = 1.0, *, name: str = "", stage: int | None = None
    ) -> ImagenPipeline:
        """Adds a low-rank adapter (arXiv:2106.09685) to the kernels of the stages that it was trained for.

        Several add up. Nothing is compiled anew for samples, which take as long as without adapters; the kernels
        without adapters stay in memory.

        Args:
            path: a safetensors file of this package, of diffusers or of PEFT; or a folder with one for each stage, see
                `stages/lora_files.py`, and perhaps with learned tokens, which are loaded, too.
            scale: what its changes are multiplied by: 1 as trained, and with 0 images are equal to the bit to those
                without it.
            name: for `set_lora_scale` and `unload_lora`; by default that of the file or folder.
            stage: index of the stage; by default the one that it fits.

        Returns:
            This pipeline.

        Raises:
            ConfigError: the file is damaged or of another network, has values that are not finite, or the name is
                taken.
        """
        return self._use(self._adapters.load(as_path(path), scale, name, stage, self._own_encoders))

    def check_lora(self, path: str | Path) -> None:
        """Raises ConfigError if `load_lora` would; nothing is loaded."""
        self._adapters.load(as_path(path), 1.0, "", None, self._own_encoders)

    def set_lora_scale(self, name: str, scale: float) -> ImagenPipeline:
        """Changes the scale of an adapter, without compiling. Raises ConfigError if none has the name."""
        return self._use(self._adapters.with_scale(name, scale))

    def unload_lora(self, name: str = "") -> ImagenPipeline:
        """Removes an adapter, or all. Raises ConfigError if none has the name."""
        return self._use(self._adapters.without(name))

    def load_embedding(self, path: str | Path, word: str = "") -> ImagenPipeline:
        """Adds words with rows of their own to the text encoder's token table (textual inversion, arXiv:2208.01618).

        Prompts, negative prompts and edits may then have them. Prompts without them give the images that they gave.

        Args:
            path: a safetensors file of this package or of diffusers, or a folder with `learned_embeds.safetensors`.
            word: in place of the one in the file.

        Returns:
            This pipeline.

        Raises:
            ConfigError: the file is damaged, of another text encoder or has values that are not finite, the word is
                taken, or there is no text encoder.
        """
        return self._use(self._adapters.load_words(as_path(path), word, self._own_encoders))

    def unload_embedding(self, word: str = "") -> ImagenPipeline:
        """Removes a word of `load_embedding`, or all. Raises ConfigError if none is called so."""
        return self._use(self._adapters.without_words(word))

    @property
    def learned_tokens(self) -> list[str]:
        """The words that text encoders have beside their own, of `load_embedding`, configs and runs."""
        return list(dict.fromkeys(word for encoder in self._encoders if encoder for word in encoder.encoder.learned))

    @property
    def lora_scales(self) -> dict[str, float]:
        """The scale of each adapter by name, in the order in which they were loaded."""
        return self._adapters.scales

    def with_adapters_of(self, other: ImagenPipeline) -> ImagenPipeline:
        """Returns this pipeline, with its own settings, and with the adapters and words of another one.

        Both have the same stages. Weights and compiled programs are shared; what either loads or unloads later leaves
        the other as it is.
        """
        mine = object.__new__(ImagenPipeline)
        mine.__dict__ = self.__dict__ | {"_by_mesh": {}, "_adapters": other._adapters, "_encoders": other._encoders}
        mine.stages = tuple(
            dataclasses.replace(trained, params=its.params, checksum=its.checksum)
            for trained, its in zip(self.stages, other.stages, strict=True)
        )
        return mine

    def load_draft(self, name: str | Path, strength: float = 0.6) -> ImagenPipeline:
        """Lets the base stage start from images of a VAE with noise, in place of noise alone.

        Args:
            name: the VAE's stage folder, of the size and with the text encoder of the base; empty for no draft.
            strength: in (0, 1]: how much noise its images get, and which share of the steps is taken.

        Returns:
            This pipeline.

        Raises:
            ConfigError: there is no such VAE, it does not fit the base, or the strength is out of range.
        """
        changes = {"draft": str(name), "draft_strength": strength}
        other = self.with_settings([changes, *[{}] * (len(self.stages) - 1)])
        other._draft()
        self.stages, self._samplers, self._by_mesh = other.stages, other._samplers, {}
        return self

    @property
    def draft(self) -> TrainedStage | None:
        """The VAE whose images the base stage starts from, loaded at first use by all processes; None for none.

        Raises ConfigError as `load_draft`.
        """
        draft = self._draft()
        return None if draft is None else draft.trained

    def _draft(self) -> Draft | None:
        """Returns what drafts the images of the base stage; None for nothing. Raises ConfigError, see `load_draft`."""
        stage = self.stages[0].stage
        name = stage.config.sampling.draft
        if not name:
            return None
        if stage.is_vae:
            raise ConfigError("sampling.draft is for a diffusion stage, and the base of this cascade is a VAE itself")
        if name not in self._drafts:
            self._drafts[name] = open_draft(name, stage, self.mesh)
        return self._drafts[name]

    def _start(self, request: SampleRequest, index: int) -> StageStart:
        """Returns what a stage begins with, at the strength of its draft if it has one."""
        start = request.start(index)
        if not self._is_drafted(request, index):
            return start
        return dataclasses.replace(start, strength=self.stages[index].stage.config.sampling.draft_strength)

    def _is_drafted(self, request: SampleRequest, index: int) -> bool:
        """Returns whether a stage starts from a draft: the base does, unless it is given something to start from."""
        start = request.start(index)
        return index == 0 and start.image is None and start.z is None and start.pairs is None and bool(self._draft())

    def _use(self, adapters: Adapters) -> ImagenPipeline:
        """Samples with other adapters from now on."""
        applied = [adapters.apply(index) for index in range(len(self.stages))]
        self.stages = tuple(
            dataclasses.replace(trained, params=other.params, checksum=other.checksum)
            for trained, other in zip(self.stages, applied, strict=True)
        )
        if adapters.files != self._adapters.files:
            self._encoders = tuple(learn(self._own_encoders, adapters.words_of))
        self._adapters, self._by_mesh = adapters, {}
        return self

    @property
    def text_encoders(self) -> tuple[PromptEncoder | None, ...]:
        """The text encoder of each stage, the same object for stages that share it; None without any."""
        return self._encoders

    @property
    def image_size(self) -> Size:
        """(height, width) of the images of the last stage."""
        height, width, _ = self.stages[-1].stage.image_shape
        return height, width

    def as_size(self, height: int | None, width: int | None) -> Size | None:
        """Returns (height, width) with the last stage's own in place of None; None if both are."""
        own_height, own_width = self.image_size
        if height is None and width is None:
            return None
        return own_height if height is None else height, own_width if width is None else width

    def set_progress_bar_config(self, **settings: Any) -> None:
        """Passes settings to the tqdm progress bar of later calls, such as `disable=True`."""
        self._progress = settings

    @property
    def progress_bar_config(self) -> dict[str, Any]:
        """The settings of `set_progress_bar_config`."""
        return dict(self._progress)

    def encode_prompt(self, prompts: str | Sequence[str], stage: int = 0) -> TextCondition:
        """Encodes prompts by the text encoder of a stage.

        Args:
            prompts: one prompt or N of them.
            stage: index of the stage.

        Returns:
            Embeddings [N, L, D] and mask bool [N, L], True where there is a token; NumPy arrays, for `prompt_embeds`.
        """
        prompts = as_prompts(prompts)
        return required(self._encoders[stage]).on_host(prompts, len(prompts))

    def __call__(
        self,
        prompts: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        seed: int | Sequence[int] = 0,
        num_inference_steps: int | Sequence[int] | None = None,
        guidance_scale: float | Sequence[float] | np.ndarray | None = None,
        sampler: str | Sequence[str] | None = None,
        aug_level: float | Sequence[float] | None = None,
        height: int | None = None,
        width: int | None = None,
        prompt_embeds: TextCondition | Sequence[TextCondition] | None = None,
        negative_prompt_embeds: TextCondition | Sequence[TextCondition] | None = None,
        batch_size: int = 16,
        mesh: Mesh | Mapping[str, int] | None = None,
        callback: Callback | None = None,
        **settings: Any,
    ) -> ImagenPipelineOutput:
        """Samples an image for each prompt.

        Settings that are not given are those of each stage's config; each may be one value for all stages, or a
        sequence with one for each. Other steps, scales and seeds need no compilation.

        Args:
            prompts: one prompt or N of them.
            negative_prompt: what images should not show, one text or one for each prompt: it stands in the place of
                the unconditional text of guidance.
            seed: of the noise, in [0, 2^64); the same seed gives the same images at any batch size and on any mesh, up
                to rounding. Or a seed for each prompt: each image is then what its seed gives to a single prompt.
            num_inference_steps: steps of the sampler.
            guidance_scale: of classifier-free guidance (arXiv:2207.12598), 1 for none; or float [stages, N], one for
                each stage and prompt.
            sampler: "ddpm", "ddim", "bdia", "dpm_solver" or "heun".
            aug_level: noise in [0, 1] added to the low-resolution input of super-resolution stages.
            height: of the images in pixels, by default that of the last stage's config.
            width: likewise.
            prompt_embeds: embeddings [N, L, D] and mask [N, L] in place of prompts, as from `encode_prompt`; or a
                sequence with one for each stage.
            negative_prompt_embeds: likewise, in place of negative prompts.
            batch_size: prompts to sample at once.
            mesh: other devices than the pipeline's; weights are copied to them once, and kept there.
            callback: called with a `SamplingProgress` every few steps; an exception that it raises ends the call.
            **settings: any other key of a config's `sampling`, such as `eta` or `threshold`.

        Returns:
            `.images` [N, H, W, C] of the last stage, `.stages`, the images of every stage, and `.safety`, which of them
            the cascade's safety checker has flagged: these are black.

        Raises:
            ConfigError: a setting is unknown, out of range, or has another number of values than there are stages.
        """
        pipeline, request = self.make_request(
            prompts,
            negative_prompt=negative_prompt,
            seed=seed,
            height=height,
            width=width,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            batch_size=batch_size,
            mesh=mesh,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            sampler=sampler,
            aug_level=aug_level,
            **settings,
        )
        return pipeline.checked(pipeline.sample_all(request, callback), batch_size)

    def make_request(
        self,
        prompts: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        seed: int | Sequence[int] = 0,
        height: int | None = None,
        width: int | None = None,
        prompt_embeds: TextCondition | Sequence[TextCondition] | None = None,
        negative_prompt_embeds: TextCondition | Sequence[TextCondition] | None = None,
        batch_size: int = 16,
        mesh: Mesh | Mapping[str, int] | None = None,
        **settings: Any,
    ) -> tuple[ImagenPipeline, SampleRequest]:
        """Returns this pipeline with settings and on devices, and the request for its `sample_all`; as `__call__`."""
        widths = [trained.stage.text_width for trained in self.stages]
        texts = make_texts(prompts, negative_prompt, prompt_embeds, negative_prompt_embeds, widths)
        scales = _pop_prompt_scales(settings, len(self.stages), len(texts.prompts))
        request = SampleRequest(texts, seed, batch_size, scales, self.as_size(height, width))
        pipeline = self if mesh is None else self._on(_as_mesh(mesh))
        return pipeline.with_settings(self._settings_by_stage(settings)), request

    def _settings_by_stage(self, given: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Returns settings, each one value or one for each stage, as settings of each stage."""
        count = len(self.stages)
        by_stage: list[dict[str, Any]] = [{} for _ in range(count)]
        for name, value in given.items():
            if value is None:
                continue
            values = list(value) if isinstance(value, (list, np.ndarray)) else [value] * count
            if len(values) != count:
                raise ConfigError(
                    f"{name} has {len(values)} values for {count} stages: give one for all, or one for each"
                )
            for settings, one in zip(by_stage, values, strict=True):
                settings[name] = one
        return by_stage

    def with_settings(self, by_stage: Sequence[Mapping[str, Any]]) -> ImagenPipeline:
        """Returns this pipeline with other sampling settings; weights and compiled programs are shared.

        Args:
            by_stage: for each stage, keys of its config's `sampling` with other values.

        Raises:
            ConfigError: a setting is unknown or out of range.
        """
        if not any(by_stage):
            return self
        other = object.__new__(ImagenPipeline)
        other.__dict__ = self.__dict__ | {"_by_mesh": {}}
        stages, samplers = [], []
        for index, (trained, changes) in enumerate(zip(self.stages, by_stage, strict=True)):
            stage = trained.stage.with_sampling(changes)
            unchanged = stage.config.sampling == trained.stage.config.sampling
            stages.append(dataclasses.replace(trained, stage=stage))
            samplers.append(self._samplers[index] if unchanged else self._cached_sampler(index, stage))
        other.stages, other._samplers = tuple(stages), samplers
        return other

    def _cached_sampler(self, index: int, stage: Stage) -> AnySampler:
        """Returns the sampler of a stage with its settings; those used last are kept."""
        key = (index, stage.config.sampling)
        with self._cache_lock:
            if key not in self._cache:
                self._cache[key] = make_stage_sampler(stage, self.mesh)
            self._cache.move_to_end(key)
            while len(self._cache) > _MAX_SAMPLERS:
                self._cache.popitem(last=False)
            return self._cache[key]

    def _on(self, mesh: Mesh) -> ImagenPipeline:
        """Returns this pipeline on other devices; weights are copied once for each mesh."""
        if mesh == self.mesh:
            return self
        if mesh not in self._by_mesh:
            self._by_mesh[mesh] = self._copy_to(mesh)
        other = self._by_mesh[mesh]
        other._progress = self._progress
        return other

    def _copy_to(self, mesh: Mesh) -> ImagenPipeline:
        """Returns a pipeline with copies of the weights on other devices."""
        copy = functools.cache(lambda encoder: encoder and encoder.on(mesh))
        stages = [
            dataclasses.replace(trained, params=jax.device_put(trained.params, param_shardings(trained.params, mesh)))
            for trained in self.stages
        ]
        checker = self.safety_checker and self.safety_checker.on(mesh)
        return ImagenPipeline(stages, mesh, [copy(encoder) for encoder in self._encoders], checker)

    def checked(self, images: Sequence[np.ndarray], batch_size: int) -> ImagenPipelineOutput:
        """Returns images with those in black that the safety checker, if there is one, flags.

        Args:
            images: of every stage, [N, H, W, C] each; those of the last are checked.
            batch_size: to check at once, see `padded_batch`.
        """
        report = None
        if self.safety_checker is not None:
            report = self.safety_checker(images[-1], self.padded_batch(len(images[-1]), batch_size))
            images = [report.blacken(stage) for stage in images]
        return ImagenPipelineOutput(images[-1], list(images), report)

    def sample_all(self, request: SampleRequest, callback: Callback | None = None) -> list[np.ndarray]:
        """Returns the images of every stage, [N, H, W, C] each, not checked for safety; see `iter_batches`."""
        batches = [images for _, images in self.iter_batches(request, callback=callback)]
        return [np.concatenate(parts) for parts in zip(*batches, strict=True)]

    def iter_batches(
        self, request: SampleRequest, pending: np.ndarray | None = None, callback: Callback | None = None
    ) -> Iterator[tuple[int, list[np.ndarray]]]:
        """Samples any number of prompts in batches, with a progress bar; logs how many prompts are truncated.

        Args:
            request: what to sample.
            pending: bool [N]; batches without a pending sample are skipped. The others are the same as without it.
            callback: called every few steps of a stage.

        Yields:
            The index of the batch's first prompt, and the images of every stage, uint8 or uint16 [B, H, W, C] each;
            they are not checked for safety, see `checked`.
        """
        yield from self._iter_batches(request, pending, callback, self._sample_batch)

    def iter_low_res(
        self, request: SampleRequest, pending: np.ndarray | None = None, callback: Callback | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Samples the stages up to `request.last_stage`; a request with its images as `low_res` continues after it.

        Images of the later stages are then equal to the bit to those of one request for all stages: they are not
        rounded in between.

        Args:
            request: what to sample.
            pending: see `iter_batches`.
            callback: called every few steps of a stage.

        Yields:
            The index of the batch's first prompt, and the images of the last of these stages, float32 [B, H, W, C] in
            [-1, 1].
        """
        for first, (images,) in self._iter_batches(request, pending, callback, self._sample_low_res):
            yield first, images

    def invert(self, request: SampleRequest, callback: Callback | None = None) -> list[tuple[np.ndarray, ...]]:
        """Walks from the images that stages start with up to their noise, from which sampling returns to them.

        The noise of a VAE are the latents of its posterior's mean, in units of the prior: it is found in one step, and
        sampling returns what the VAE keeps of the image.

        Args:
            request: with an image for each stage among its `starts`; the settings' samplers are deterministic.
            callback: called every few steps of a stage.

        Returns:
            For every stage the noise [N, H, W, C], or [N, D] for a VAE; for samplers that remember it, z at the time
            before, too.

        Raises:
            ConfigError: a sampler is not deterministic.
        """
        batches = [arrays for _, arrays in self._iter_batches(request, None, callback, self._invert_batch)]
        stages: list[tuple[np.ndarray, ...]] = []
        arrays = iter([np.concatenate(parts) for parts in zip(*batches, strict=True)])
        for index in self._indices(request):
            stages.append(tuple(next(arrays) for _ in range(1 + self._samplers[index].remembers)))
        return stages

    def _iter_batches(
        self,
        request: SampleRequest,
        pending: np.ndarray | None,
        callback: Callback | None,
        run: Callable[[SampleRequest, slice, int, _Progress], list[jax.Array]],
    ) -> Iterator[tuple[int, list[np.ndarray]]]:
        """Yields what `run` returns for each batch, see `iter_batches`."""
        self.check(request)
        count, batch_size = len(request.texts.prompts), request.batch_size
        size = self.padded_batch(count, batch_size)
        batches = [slice(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
        if pending is not None:
            batches = [batch for batch in batches if pending[batch].any()]
        steps = sum(self._steps(request, index) for index in self._indices(request))
        bar_settings = {"desc": "sampling", "unit": " steps", "disable": not multihost.is_main_process()}
        with tqdm(total=len(batches) * steps, **(bar_settings | self._progress)) as bar:
            for number, batch in enumerate(batches):
                arrays = run(request, batch, size, _Progress(bar, number * steps, callback))
                count = batch.stop - batch.start
                yield batch.start, [multihost.all_gather(array)[:count] for array in arrays]

    def check(self, request: SampleRequest) -> None:
        """Raises ConfigError if a request does not fit this pipeline."""
        if request.batch_size < 1:
            raise ConfigError(f"batch_size {request.batch_size} is not at least 1")
        request.check_seeds()
        self._draft()  # an error before anything is sampled
        last_index = max(request.noise(position)[1] for position in (0, len(request.texts.prompts) - 1))
        if not 0 <= request.first_index <= last_index <= MAX_INDEX:
            raise ConfigError(
                f"samples {request.first_index} to {last_index} are asked for, and indices are within [0, 2^32): "
                "use another seed for more"
            )
        self._check_stages(request)
        if request.size is not None:
            check_size([trained.stage.config for trained in self.stages], request.size)
        if not request.texts.has_negative:
            return
        scales = [trained.stage.config.sampling.guidance_scale for trained in self.stages]
        if np.all(np.asarray(scales if request.guidance_scale is None else request.guidance_scale) == 1):
            raise ConfigError("negative_prompt has no effect at guidance_scale 1: give a scale above 1")

    def _check_stages(self, request: SampleRequest) -> None:
        """Raises ConfigError if the first and the last stage of a request, or the images to begin with, do not fit."""
        indices, first, count = self._indices(request), request.first_stage, len(request.texts.prompts)
        if not indices or first < 0 or indices.stop > len(self.stages):
            raise ConfigError(
                f"stages {first} to {indices.stop - 1} are asked for, and the cascade has stages 0 to "
                f"{len(self.stages) - 1}: give stages of the cascade, the first one first"
            )
        if request.low_res is None and first > 0:
            raise ConfigError(f"stage {first} enlarges images, and none are given: give low_res, or begin with stage 0")
        if request.low_res is not None and request.low_res.shape[0] != count:
            raise ConfigError(f"low_res has {request.low_res.shape[0]} images for {count} prompts: give one for each")

    def padded_batch(self, count: int, batch_size: int) -> int:
        """Returns the size that batches of `count` images are padded to: one of few, so that few programs are compiled.

        Args:
            count: images in all.
            batch_size: the most to sample at once.
        """
        size = 1
        while size < min(count, batch_size) or size == _SKIPPED_SIZE:
            size *= 2
        return padded_size(min(size, batch_size), num_batch_shards(self.mesh))

    def _sample_batch(self, request: SampleRequest, batch: slice, size: int, tell: _Progress) -> list[jax.Array]:
        """Returns the images of every stage for a batch padded to `size`, integers on the devices."""
        images: list[jax.Array] = []
        for index, stage_images in self._sample_stages(request, batch, size, tell):
            bits = self.stages[index].stage.config.sampling.bits
            images.append(to_uint(stage_images, image_dtype(bits, "sampling bits")))
        return images

    def _sample_low_res(self, request: SampleRequest, batch: slice, size: int, tell: _Progress) -> list[jax.Array]:
        """Returns the images of the last stage alone, float on the devices."""
        *_, (_, images) = self._sample_stages(request, batch, size, tell)
        return [images]

    def _sample_stages(
        self, request: SampleRequest, batch: slice, size: int, tell: _Progress
    ) -> Iterator[tuple[int, jax.Array]]:
        """Yields the index of each stage and its images for a batch, float on the devices."""
        make = self._batch_requests(request, batch, size)
        images: jax.Array | None = None
        for index in self._indices(request):
            stage_request = make(index, images)
            if stage_request.image is not None and stage_request.strength == 0:
                images = stage_request.image
            else:
                state = self._walk(index, stage_request, request.steps_per_call, batch, tell)
                images = self._samplers[index].finish(self.stages[index].params, state, request.isolated)
            yield index, images

    def _invert_batch(self, request: SampleRequest, batch: slice, size: int, tell: _Progress) -> list[jax.Array]:
        """Returns what `invert` says for a batch, one stage after the other, float on the devices."""
        make = self._batch_requests(request, batch, size)
        arrays: list[jax.Array] = []
        low_res: jax.Array | None = None
        for index in self._indices(request):
            sampler, stage_request = self._samplers[index], make(index, low_res)
            low_res = stage_request.image
            up = sampler.as_inversion(self.stages[index].params, stage_request)
            state = self._walk(index, up, request.steps_per_call, batch, tell)
            arrays += [state.z, *([state.before] if sampler.remembers else [])]
        return arrays

    def _walk(
        self, index: int, stage_request: StageRequest, steps_per_call: int, batch: slice, tell: _Progress
    ) -> SamplerState:
        """Returns the last state of a stage's walk, and tells where it is on the way."""
        sampler, params = self._samplers[index], self.stages[index].params
        for walk in sampler.walk(params, stage_request, steps_per_call):
            count, x_hat = batch.stop - batch.start, walk.state.x_hat
            if tell.is_watched:
                x_hat = sampler.decode(params, x_hat, stage_request.isolated)
            tell(SamplingProgress(index, walk.step, walk.steps, batch.start, count, x_hat))
        return walk.state

    def _batch_requests(
        self, request: SampleRequest, batch: slice, size: int
    ) -> Callable[[int, jax.Array | None], StageRequest]:
        """Returns what makes the request of a batch for the stage of an index, from the images of the one before it."""
        texts, null_texts = encode_batch(
            request.texts, self._encoders, self.stages, batch, size, self.mesh, request.isolated
        )
        seeds, indices = zip(*(request.noise(batch.start + row) for row in range(size)), strict=True)
        image_size = base_size([trained.stage.config for trained in self.stages], request.size)

        def put_all(arrays: Mapping[str, Any], axes: Any) -> dict[str, jax.Array]:
            padded = {name: pad_batch(np.asarray(array[batch]), size) for name, array in arrays.items()}
            return shard_host_batch(padded, axes, self.mesh)

        def put(array: Rows | None, axes: Axes = IMAGE) -> jax.Array | None:
            return None if array is None else put_all({"images": array}, axes)["images"]

        def put_pairs(pairs: Pairs | None) -> Pairs | None:
            return None if pairs is None else Pairs(**put_all(pairs._asdict(), PAIRS_AXES._asdict()))

        def make(index: int, low_res: jax.Array | None) -> StageRequest:
            begin, scales = self._start(request, index), request.guidance_scale
            made = StageRequest(
                texts[index],
                null_texts[index],
                stage_keys(seeds, indices, index, self.mesh),
                put(request.low_res) if index == request.first_stage else low_res,
                None if scales is None else pad_batch(np.asarray(scales[index, batch], np.float32), size, 1),
                image_size if index == 0 else None,
                image=put(begin.image),
                mask=put(begin.mask),
                strength=begin.strength,
                resample=begin.resample,
                z=None if begin.z is None else put(begin.z, _noise_axes(begin.z)),
                before=put(begin.before),
                pairs=put_pairs(begin.pairs),
                positions=None if begin.positions is None else put_all(begin.positions, "batch ..."),
                isolated=request.isolated,
            )
            draft = self._draft() if self._is_drafted(request, index) else None
            if draft is None:
                return made
            keys = stage_keys(seeds, indices, DRAFT_STAGE, self.mesh)
            return dataclasses.replace(made, image=draft.images(made, keys))

        return make

    def _indices(self, request: SampleRequest) -> range:
        """Returns the indices of the stages of a request."""
        last = len(self.stages) - 1 if request.last_stage is None else request.last_stage
        return range(request.first_stage, last + 1)

    def start_noise(self, index: int, keys: jax.Array, size: Size) -> np.ndarray:
        """Returns the noise that a stage's walks with keys of `stage_keys` begin with, see `StageStart.z`.

        Args:
            index: of the stage.
            keys: keys [B].
            size: (height, width) of the stage's images.
        """
        return multihost.all_gather(self._samplers[index].start_noise(keys, size))

    def _steps(self, request: SampleRequest, index: int) -> int:
        """Returns how many steps a stage takes for a batch."""
        steps, strength = self.stages[index].stage.config.sampling_steps, self._start(request, index).strength
        return strength_steps(steps, strength) if strength else 0


def _noise_axes(noise: np.ndarray) -> Axes:
    """Returns the axes of noise [N, H, W, C], or of a VAE's latents [N, D]."""
    return LATENT_AXES if noise.ndim == 2 else IMAGE


def _as_mesh(mesh: Mesh | Mapping[str, int] | None) -> Mesh:
    if isinstance(mesh, Mesh):
        return mesh
    return make_mesh(SAMPLING_MESH | dict(mesh or {}))


def _pop_prompt_scales(given: dict[str, Any], stages: int, count: int) -> np.ndarray | None:
    """Takes guidance scales [stages, count] out of the settings, if they have one for each prompt."""
    if np.ndim(given.get("guidance_scale", 1.0)) != 2:
        return None
    scales = np.asarray(given.pop("guidance_scale"), np.float32)
    if scales.shape != (stages, count):
        raise ConfigError(
            f"guidance_scale has shape {scales.shape}, expected ({stages}, {count}): "
            "one scale for each stage and prompt"
        )
    return scales


class _Progress:
    """Moves a progress bar by the steps of a batch, and passes them on.

    Args:
        bar: counts steps of all batches and stages.
        before: steps of the batches before.
        callback: is called too, if there is one.
    """

    def __init__(self, bar: tqdm, before: int, callback: Callback | None) -> None:
        self._bar, self._before, self._callback = bar, before, callback

    @property
    def is_watched(self) -> bool:
        """Whether somebody sees more of the progress than the bar."""
        return self._callback is not None

    def __call__(self, progress: SamplingProgress) -> None:
        self._bar.set_postfix_str(f"image {progress.first + progress.count}", refresh=False)
        self._bar.update(self._before + progress.step - self._bar.n)
        if progress.step == progress.steps:
            self._before += progress.steps
        if self._callback is not None:
            self._callback(progress)
