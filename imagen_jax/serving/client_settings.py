"""The sampling settings that a client of the server may give."""

from imagen_jax.config.schema import SamplingConfig

# all but paths: which files the server reads is not for its clients to say
CLIENT_SETTINGS = tuple(name for name in SamplingConfig.model_fields if name != "draft")
