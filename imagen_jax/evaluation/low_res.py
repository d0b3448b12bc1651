"""The images that a stage starts from where real ones are given: in previews, in metrics of a run and in validation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from imagen_jax.images.array import to_float
from imagen_jax.images.resize import resize
from imagen_jax.parallel import multihost
from imagen_jax.parallel.axes import IMAGE
from imagen_jax.parallel.batching import pad_batch, shard_host_batch
from imagen_jax.pipelines.draft import DRAFT_STAGE
from imagen_jax.pipelines.loading import TrainedStage
from imagen_jax.stages.stage import Stage
from imagen_jax.stages.stage_sampler import NoiseSource, make_request
from imagen_jax.stages.text import PromptEncoder
from imagen_jax.stages.vae_sampler import VAESampler
from imagen_jax.text.encoder import TextCondition

SEED = 0


class Reconstruct:
    """Reconstructs real images by a VAE, as the stage sees them in training that refines its images.

    The noise of image i is a function of i alone.

    Args:
        vae: the VAE with its weights.
        mesh: the devices.
    """

    def __init__(self, vae: TrainedStage, mesh: Mesh) -> None:
        self._vae, self._mesh, self._sampler = vae, mesh, VAESampler(vae.stage, mesh)

    def __call__(
        self, images: np.ndarray, encoder: PromptEncoder, texts: Sequence[str] | TextCondition, first: int = 0
    ) -> np.ndarray:
        """Returns the reconstructions, float32 [N, H, W, C] in [-1, 1].

        Args:
            images: uint8 or uint16 [N, H, W, C].
            encoder: the text encoder.
            texts: N captions, or their text from `PromptEncoder.on_host`.
            first: index of the first image.
        """
        request = make_request(self._vae.stage, encoder, texts, NoiseSource(SEED, first, DRAFT_STAGE))
        padded = shard_host_batch({"image": pad_batch(images, len(request.keys))}, IMAGE, self._mesh)["image"]
        request = dataclasses.replace(request, image=to_float(padded))
        return multihost.all_gather(self._sampler.reconstruct(self._vae.params, request))[: len(images)]


def downsample(stage: Stage, images: np.ndarray) -> np.ndarray:
    """Returns the images [N, h, w, C] in [-1, 1] that a super-resolution stage enlarges to real ones."""
    return np.asarray(resize(to_float(jnp.asarray(images)), *stage.low_res_shape[:2]))
