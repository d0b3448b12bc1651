"""Pretrain the text encoder that comes with the package.

imagen pretrain_text --config=configs/pretrain_text.py --out=DIR
"""

import ml_collections


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The config; ``variant`` is "" or "tiny", which is of the same form and takes seconds, for tests."""
    if variant not in ("", "tiny"):
        raise ValueError(f"configs/pretrain_text.py has no variant {variant!r}: give none, or :tiny")
    tiny = variant == "tiny"
    config = ml_collections.ConfigDict()
    config.seed = 0

    config.encoder = ml_collections.ConfigDict()
    config.encoder.vocab_size = 384  # 256 bytes, 3 special tokens, 125 sentinels
    config.encoder.d_model = 48 if tiny else 64  # room for the 42 answers of the grammar
    config.encoder.d_kv = 8 if tiny else 16
    config.encoder.d_ff = 32 if tiny else 160
    # letters to words, words to things, things to scenes
    config.encoder.num_layers = 1 if tiny else 3
    config.encoder.num_heads = 2 if tiny else 4
    config.encoder.relative_attention_num_buckets = 32
    config.encoder.relative_attention_max_distance = 128
    config.encoder.layer_norm_epsilon = 1e-6
    config.encoder.feed_forward_proj = "gated-gelu"

    config.data = ml_collections.ConfigDict()
    config.data.seed = 1  # not that of the stages' data: other captions
    # All that the grammar can say, as T5 has read more than captions: only the pictures of held_out are kept from
    # training. After train alone, embeddings of a look of held_out had 20 times the error of others.
    config.data.splits = ("train", "held_out")
    config.data.max_length = 24 if tiny else 96
    config.data.pool = 2 if tiny else 16  # batches sorted by length together, so that little is padding

    config.batch_size = 16 if tiny else 64
    config.steps = 2 if tiny else 3000
    config.learning_rate = 5e-3
    config.warmup_steps = 1 if tiny else 100
    config.b2 = 0.99
    config.clip_norm = 1.0

    config.probe = ml_collections.ConfigDict()
    config.probe.train_captions = 200 if tiny else 4000
    config.probe.test_captions = 100 if tiny else 2000
    return config
