"""The fields of the smallest T5 that tests write to folders."""

from imagen_jax.text.encoder import _RANDOM_CONFIG

BYTE_T5 = {
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "gated-gelu",
    "relative_bias_per_layer": False,
} | _RANDOM_CONFIG
