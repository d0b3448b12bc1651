"""imagen_jax: the U-Net of the base stage."""

from __future__ import annotations

import statistics
from typing import Any

import jax
import numpy as np

from benchmarks import training_speed
from benchmarks.peers import work
from imagen_jax.config.load import default_config, load_config
from imagen_jax.config.schema import StageConfig
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.planning.encoders import abstract_encoder, cached_encoder
from imagen_jax.planning.programs import sample_program


def config() -> StageConfig:
    """Returns the config of the work."""
    config = default_config()
    config.image_size = work.SIZE
    config.text.update(model="random", length=work.TEXT_LENGTH, dtype="float32")
    config.model.update(channels=work.CHANNELS, channel_mult=work.CHANNEL_MULT, head_channels=work.HEAD_CHANNELS)
    config.model.update(num_res_blocks=(work.BLOCKS,) * 3, dtype="float32")
    config.model.attention_types = ((), ("self+text",), ("self+text",))
    config.optimizer.update(name="adam", learning_rate=work.LEARNING_RATE)
    config.training.batch_size = work.BATCH_SIZE
    config.sampling.update(sampler="ddim", num_inference_steps=work.SAMPLING_STEPS, threshold="static")
    config.sampling.guidance_scale = work.GUIDANCE_SCALE
    return load_config(config)


def main() -> None:
    """Measures the network."""
    training = training_speed.measure(config(), work.TRAINING_STEPS)
    images = training.batch_size * work.FORWARD_AND_BACKWARD
    work.report(
        work.Result(
            num_params=training.num_params,
            forward_flops=training.model_flops / images,
            step_s=statistics.median(training.step_s),
            sampling_s=_sampling_s(),
        )
    )


def _sampling_s() -> float:
    """Returns the seconds of sampling."""
    encoder = cached_encoder(abstract_encoder(config().text))
    lowered = sample_program(config(), make_mesh({"data": 1, "fsdp": 1}), encoder, work.SAMPLES).lower()
    sampler = lowered.compile()
    arguments, _ = jax.tree.map(_random_array, lowered.args_info)
    jax.block_until_ready(sampler(*arguments))
    return work.time_call(lambda: jax.block_until_ready(sampler(*arguments)))


def _random_array(argument: Any) -> Any:
    """Returns an array for an argument of a program: random numbers or keys, or a mask with every token."""
    if jax.dtypes.issubdtype(argument.dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(0), argument.shape)
    if argument.dtype == bool:
        return np.ones(argument.shape, bool)
    return jax.numpy.asarray(0.02 * np.random.default_rng(0).standard_normal(argument.shape), argument.dtype)


if __name__ == "__main__":
    main()
