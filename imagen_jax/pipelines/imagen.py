"""The text-to-image pipeline: trained stages chained from prompts to images.

The image of sample i is a function of (seed, i), its prompt and the weights: not of the batch it is sampled in, nor of
the mesh.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from imagen_jax.config.schema import SamplingConfig
from imagen_jax.errors import ConfigError
from imagen_jax.images.array import Size
from imagen_jax.parallel import multihost
from imagen_jax.parallel.batching import pad_batch
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.parallel.sharding import param_shardings
from imagen_jax.pipelines.loading import TrainedStage, check_chain, find_stages, load_stages
from imagen_jax.stages.sampling import SAMPLING_MESH, StageSampler
from imagen_jax.text.encoder import TextCondition

MAX_SEED = 2**63

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ImagenPipelineOutput:
    """What a call of the pipeline returns.

    Attributes:
        images: the images of the last stage, uint8 [N, H, W, C]; uint16 for stages that sample 16 bits.
        stages: the images of every stage, base first; the last entry is `images`.
    """

    images: np.ndarray
    stages: list[np.ndarray]


class ImagenPipeline:
    """A cascade of trained stages, from the smallest image to the largest (arXiv:2205.11487, Section 2).

    Args:
        stages: the stages with their weights, base first.
        mesh: the devices that sample; batches are split over all of them. By default all devices, each with full
            networks.

    Raises:
        ConfigError: the stages do not chain, or their sampling settings cannot work.
    """

    def __init__(self, stages: Sequence[TrainedStage], mesh: Mesh | None = None) -> None:
        check_chain([trained.stage.config for trained in stages])
        self.stages = tuple(stages)
        self.mesh = make_mesh(SAMPLING_MESH) if mesh is None else mesh
        self._progress: dict[str, Any] = {}
        self._samplers = [StageSampler(trained.stage, self.mesh, i) for i, trained in enumerate(self.stages)]
        self._by_mesh: dict[Mesh, ImagenPipeline] = {}  # this pipeline on other devices
        # samplers with other settings, by stage and settings; shared by all pipelines made from this one
        self._cache: dict[tuple[int, SamplingConfig], StageSampler] = {}

    @classmethod
    def from_pretrained(
        cls,
        stages: str | Path | Sequence[str | Path],
        mesh: Mesh | Mapping[str, int] | None = None,
        sampling: Sequence[Mapping[str, Any]] | None = None,
    ) -> ImagenPipeline:
        """Loads a cascade, with the EMA weights of each stage.

        Args:
            stages: stage folders, base first; or one folder that holds them, such as "runs/demo".
            mesh: the devices that sample, as a mesh or as sizes of its axes, such as `{"data": 2, "fsdp": 4}`.
            sampling: for each stage, sampling settings that replace those of its config.

        Raises:
            ConfigError: a folder holds no stage, or the stages do not chain.
            TrainingError: every checkpoint of a stage is damaged.
        """
        if isinstance(stages, (str, Path)):
            folders = find_stages(Path(stages).expanduser())
        else:
            folders = [Path(folder).expanduser() for folder in stages]
        mesh = _as_mesh(mesh)
        return cls(load_stages(folders, mesh, sampling), mesh)

    @property
    def image_size(self) -> Size:
        """(height, width) of the images of the last stage."""
        height, width, _ = self.stages[-1].stage.image_shape
        return height, width

    def set_progress_bar_config(self, **settings: Any) -> None:
        """Passes settings to the tqdm progress bar of later calls, such as `disable=True`."""
        self._progress = settings

    def encode_prompt(self, prompts: str | Sequence[str]) -> TextCondition:
        """Encodes prompts by the text encoder of the base stage.

        Args:
            prompts: one prompt or B of them.

        Returns:
            Embeddings [B, L, D] and mask bool [B, L], True where there is a token.
        """
        prompts = _as_prompts(prompts)
        base = self.stages[0]
        tokens, mask = base.stage.encoder.tokenize(prompts)
        embeddings = jax.jit(base.stage.encoder.encode)(base.encoder_params, tokens, mask)
        return TextCondition(embeddings, jnp.asarray(mask))

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        seed: int = 0,
        num_inference_steps: int | Sequence[int] | None = None,
        guidance_scale: float | Sequence[float] | np.ndarray | None = None,
        sampler: str | Sequence[str] | None = None,
        aug_level: float | Sequence[float] | None = None,
        batch_size: int = 16,
        mesh: Mesh | Mapping[str, int] | None = None,
        **settings: Any,
    ) -> ImagenPipelineOutput:
        """Samples an image for each prompt.

        Settings that are not given are those of each stage's config; each may be one value for all stages, or a
        sequence with one for each.

        Args:
            prompts: one prompt or N of them.
            seed: of the noise, in [0, 2^63); the same seed gives the same images at any batch size and on any mesh.
            num_inference_steps: steps of the sampler.
            guidance_scale: of classifier-free guidance (arXiv:2207.12598), 1 for none; or float [stages, N], one for
                each stage and prompt.
            sampler: "ddpm", "ddim", "dpm_solver" or "heun".
            aug_level: noise in [0, 1] added to the low-resolution input of super-resolution stages.
            batch_size: prompts to sample at once.
            mesh: other devices than the pipeline's; weights are copied to them once, and kept there.
            **settings: any other key of a config's `sampling`, such as `eta` or `threshold`.

        Returns:
            `.images` [N, H, W, C] of the last stage, and `.stages`, the images of every stage.

        Raises:
            ConfigError: a setting is unknown, out of range, or has another number of values than there are stages.
        """
        prompts = _as_prompts(prompts)
        if not isinstance(seed, (int, np.integer)) or not 0 <= seed < MAX_SEED:
            raise ConfigError(f"seed {seed!r} is not an integer in [0, 2^63)")
        given = {
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "sampler": sampler,
            "aug_level": aug_level,
            **settings,
        }
        scales = None
        if np.ndim(given["guidance_scale"]) == 2:
            scales = np.asarray(given.pop("guidance_scale"), np.float32)
            if scales.shape != (len(self.stages), len(prompts)):
                raise ConfigError(
                    f"guidance_scale has shape {scales.shape}, expected ({len(self.stages)}, {len(prompts)}): "
                    "one scale for each stage and prompt"
                )
        pipeline = self if mesh is None else self._on(_as_mesh(mesh))
        pipeline = pipeline.with_settings(self._settings_by_stage(given))
        images = pipeline.sample_all(prompts, seed, batch_size, scales)
        return ImagenPipelineOutput(images[-1], images)

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
            key = (index, stage.sampling_key())
            if key not in self._cache:
                unchanged = key[1] == trained.stage.sampling_key()
                self._cache[key] = self._samplers[index] if unchanged else StageSampler(stage, self.mesh, index)
            stages.append(dataclasses.replace(trained, stage=stage))
            samplers.append(self._cache[key])
        other.stages, other._samplers = tuple(stages), samplers
        return other

    def _on(self, mesh: Mesh) -> ImagenPipeline:
        """Returns this pipeline on other devices; weights are copied, and programs compiled, once for each mesh."""
        if mesh == self.mesh:
            return self
        if mesh not in self._by_mesh:
            self._by_mesh[mesh] = self._copy_to(mesh)
        other = self._by_mesh[mesh]
        other._progress = self._progress
        return other

    def _copy_to(self, mesh: Mesh) -> ImagenPipeline:
        """Returns a pipeline with copies of the weights on other devices."""

        @functools.cache
        def place(index: int, name: str) -> Any:
            params = getattr(self.stages[index], name)
            return jax.device_put(params, param_shardings(params, mesh))

        # stages that share an encoder share its copy
        first = {id(trained.encoder_params): index for index, trained in reversed(list(enumerate(self.stages)))}
        stages = [
            dataclasses.replace(
                trained,
                params=place(index, "params"),
                encoder_params=place(first[id(trained.encoder_params)], "encoder_params"),
            )
            for index, trained in enumerate(self.stages)
        ]
        return ImagenPipeline(stages, mesh)

    def sample(
        self, prompts: Sequence[str], seed: int, first_index: int = 0, guidance_scale: np.ndarray | None = None
    ) -> list[np.ndarray]:
        """Samples one batch.

        Args:
            prompts: of samples `first_index`, `first_index` + 1, …; B of them.
            seed: of the noise.
            first_index: index of the first sample.
            guidance_scale: float [stages, B], in place of the scales of the configs.

        Returns:
            The images of every stage, [B, H, W, C] each.
        """
        images: list[np.ndarray] = []
        for index, (trained, sampler) in enumerate(zip(self.stages, self._samplers, strict=True)):
            low_res = images[-1] if images else None
            scales = None if guidance_scale is None else guidance_scale[index]
            images.append(
                sampler.sample(trained.params, trained.encoder_params, prompts, seed, first_index, low_res, scales)
            )
        return images

    def sample_all(
        self, prompts: Sequence[str], seed: int, batch_size: int, guidance_scale: np.ndarray | None = None
    ) -> list[np.ndarray]:
        """Samples any number of prompts; returns the images of every stage, [N, H, W, C] each, as `iter_batches`."""
        batches = [images for _, images in self.iter_batches(prompts, seed, batch_size, guidance_scale)]
        return [np.concatenate(parts) for parts in zip(*batches, strict=True)]

    def iter_batches(
        self,
        prompts: Sequence[str],
        seed: int,
        batch_size: int,
        guidance_scale: np.ndarray | None = None,
        pending: np.ndarray | None = None,
    ) -> Iterator[tuple[int, list[np.ndarray]]]:
        """Samples any number of prompts in batches, with a progress bar; logs how many prompts are truncated.

        Args:
            prompts: N of them.
            seed: of the noise.
            batch_size: prompts to sample at once.
            guidance_scale: float [stages, N], in place of the scales of the configs.
            pending: bool [N]; batches without a pending sample are skipped. The others are the same as without it.

        Yields:
            The index of the batch's first prompt, and the images of every stage, [B, H, W, C] each.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size {batch_size} is not at least 1")
        truncated = max(trained.stage.encoder.tokenize.count_truncated(prompts) for trained in self.stages)
        if truncated:
            logger.warning(
                "%d of %d prompts have more tokens than config.text.length: their ends are not read",
                truncated,
                len(prompts),
            )
        batch_size = min(batch_size, len(prompts))
        batches = [slice(start, start + batch_size) for start in range(0, len(prompts), batch_size)]
        if pending is not None:
            batches = [batch for batch in batches if pending[batch].any()]
        skipped = len(prompts) - sum(len(prompts[batch]) for batch in batches)
        bar_settings = {"desc": "sampling", "unit": " images", "disable": not multihost.is_main_process()}
        with tqdm(total=len(prompts), initial=skipped, **(bar_settings | self._progress)) as bar:
            for batch in batches:
                chosen = list(prompts[batch])
                # the last batch is padded, so that nothing is compiled twice
                scales = None
                if guidance_scale is not None:
                    scales = pad_batch(guidance_scale.T[batch], batch_size, 1).T
                images = self.sample(pad_batch(chosen, batch_size, ""), seed, batch.start, scales)
                yield batch.start, [stage_images[: len(chosen)] for stage_images in images]
                bar.update(len(chosen))


def _as_mesh(mesh: Mesh | Mapping[str, int] | None) -> Mesh:
    if isinstance(mesh, Mesh):
        return mesh
    return make_mesh(SAMPLING_MESH | dict(mesh or {}))


def _as_prompts(prompts: str | Sequence[str]) -> list[str]:
    """Returns a list of prompts. Raises ConfigError if there are none, or one is not text."""
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts:
        raise ConfigError("prompts is empty: give a prompt, or a list of prompts")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise ConfigError(f"prompts has {prompt!r}, which is not text: give strings")
    return prompts
