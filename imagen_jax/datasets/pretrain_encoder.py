"""Trains small text encoders on the captions of a data set that the package draws, such as that of `shapes`.

A U-Net attends to the embedding of each byte of a caption, so each embedding should contain all relevant information,
linearly. This is the task: the embedding of each byte is trained to one-hot encode the attributes of the object that
the byte belongs to and of the scene. (Span corruption, the task of the large T5 models, does not work here: the words
of these captions are independent, so the rest of a caption does not predict a masked word.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from imagen_jax.config.schema import PretrainTextConfig
from imagen_jax.datasets.byte_labels import Attributes, ByteLabels
from imagen_jax.datasets.figures.byte_labels import FIGURES_LABELS
from imagen_jax.datasets.linear_probe import linear_probe
from imagen_jax.datasets.shapes.byte_labels import SHAPES_LABELS
from imagen_jax.diffusion.keys import key_from_seed, seed_entropy
from imagen_jax.errors import ConfigError
from imagen_jax.io.atomic import write_json
from imagen_jax.io.local_copy import local_folder
from imagen_jax.models.t5 import T5Encoder
from imagen_jax.parallel import devices
from imagen_jax.text.encoder import TextEncoder, build_encoder, folder_encoder, in_memory_reader
from imagen_jax.text.t5_weights import save_folder
from imagen_jax.text.tokenizer import byte_tokenizer

_Batch = dict[str, Any]  # name -> array
_ENDLESS = 2**62  # number of examples of the source
_LENGTH_MULTIPLE = 24  # lengths are padded to a multiple of it: few programs to compile, little padding

_LABELS: dict[str, ByteLabels] = {"shapes": SHAPES_LABELS, "figures": FIGURES_LABELS}


def pretrain(config: PretrainTextConfig, out: Path) -> dict[str, dict[str, float]]:
    """Trains the encoder, saves it to a folder, and probes it.

    Args:
        config: the model, training and data settings.
        out: the folder, for `load_encoder`; also gets `probe.json`.

    Returns:
        Test accuracies of linear probes by attribute, for the "untrained" and the "pretrained" encoder.
    """
    train_step, params, opt_state = _make_train_step(config)
    devices.log_devices("pretraining")
    untrained = jax.tree.map(np.asarray, params)

    batches = _labeled_batches(config)
    progress = tqdm(range(config.steps), desc="pretraining", unit="step")
    for step in progress:
        params, opt_state, loss = train_step(params, opt_state, next(batches))
        if step % 20 == 0:
            progress.set_postfix(loss=f"{float(loss):.3f}")

    fields = config.encoder.to_dict()
    save_folder(out, fields, jax.tree.map(np.asarray, params))
    length = _LABELS[config.data.source].max_bytes + 1  # the end of sequence comes after the bytes
    figures = {
        "untrained": _probe(
            build_encoder(fields, in_memory_reader(untrained), byte_tokenizer(length), "float32"), config
        ),
        "pretrained": _probe(folder_encoder(local_folder(out), length), config),
    }
    write_json(out / "probe.json", figures)
    return figures


def _make_train_step(config: PretrainTextConfig) -> tuple[Callable, dict, Any]:
    """Returns (jitted step: (params, opt_state, batch) -> (params, opt_state, loss), params, opt_state)."""
    if config.warmup_steps >= config.steps:
        raise ConfigError(
            f"config.warmup_steps {config.warmup_steps} must be less than config.steps {config.steps}: set it lower"
        )
    attributes = _LABELS[config.data.source].attributes
    count = sum(map(len, attributes.values()))
    if config.encoder.d_model < count:
        raise ConfigError(
            f"config.encoder.d_model {config.encoder.d_model} is too small for the {count} answers that an embedding "
            "has to encode: raise it"
        )
    encoder = T5Encoder(**config.encoder.to_dict())
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, config.warmup_steps, config.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optax.adam(schedule, b2=config.b2))

    def loss_fn(params: dict, batch: _Batch) -> jax.Array:
        embeddings: Any = encoder.apply({"params": params}, batch["tokens"], batch["mask"])
        return _squared_error(embeddings, _one_hot_targets(batch["labels"], attributes), batch["mask"])

    @jax.jit
    def train_step(params: dict, opt_state: Any, batch: _Batch) -> tuple[dict, Any, jax.Array]:
        loss, gradient = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    tokens = jnp.ones((1, _LENGTH_MULTIPLE), jnp.int32)
    params = jax.jit(encoder.init)(key_from_seed(config.seed), tokens, tokens > 0)["params"]
    return train_step, params, optimizer.init(params)


def _one_hot_targets(labels: jax.Array, attributes: Attributes) -> jax.Array:
    """Converts labels [B, L, attributes] to concatenated one-hot targets [B, L, values]."""
    # one_hot maps unlabeled (-1) to zeros
    parts = [jax.nn.one_hot(labels[..., i], len(values)) for i, values in enumerate(attributes.values())]
    return jnp.concatenate(parts, axis=-1)


def _squared_error(embeddings: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the mean of |embedding - target|² over the bytes in the mask, a scalar.

    Args:
        embeddings: [B, L, D].
        targets: [B, L, values], values ≤ D; the other dimensions of the embeddings have the target 0.
        mask: bool [B, L].
    """
    padding = embeddings.shape[-1] - targets.shape[-1]
    errors = jnp.sum((embeddings - jnp.pad(targets, ((0, 0), (0, 0), (0, padding)))) ** 2, axis=-1)
    return jnp.sum(errors, where=mask) / jnp.maximum(jnp.sum(mask), 1)


def _labeled_batches(config: PretrainTextConfig) -> Iterator[_Batch]:
    """Yields endless batches of tokens int32 [B, L], mask bool [B, L] and labels int32 [B, L, attributes]; L varies."""
    labels = _LABELS[config.data.source]
    sources = [labels.open(config.data.seed, split, _ENDLESS) for split in config.data.splits]
    per_pool = config.data.pool * config.batch_size
    first = 0
    while True:
        rng = np.random.default_rng(seed_entropy(config.seed, first))
        captions = [
            labels.sample_caption(sources[i % len(sources)].description(i), rng) for i in range(first, first + per_pool)
        ]
        first += per_pool
        captions.sort(key=len)
        for row in rng.permutation(config.data.pool) * config.batch_size:
            part = captions[row : row + config.batch_size]
            length = min(-(-(len(part[-1]) + 1) // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE, config.data.max_length)
            tokens, mask = byte_tokenizer(length)(part)
            yield {
                "tokens": tokens,
                "mask": mask,
                "labels": np.stack([labels(caption, length) for caption in part]),
            }


def _probe(encoder: TextEncoder, config: PretrainTextConfig) -> dict[str, float]:
    """Returns test accuracies of linear probes by attribute of an object.

    The captions are of the validation split and describe two objects; the probes read the embedding of the last byte
    that names one.
    """
    labels = _LABELS[config.data.source]
    source = labels.open(config.data.seed, "validation", _ENDLESS)
    train, test = config.probe.train_captions, config.probe.test_captions
    captions: list[str] = []
    first = 0
    while len(captions) < train + test:
        description = source.description(first)
        if labels.is_probed(description):
            captions.append(labels.sample_caption(description, np.random.default_rng(first)))
        first += 1
    train_examples, test_examples = (
        _probe_examples(encoder, labels, captions[:train]),
        _probe_examples(encoder, labels, captions[train:]),
    )
    return {name: round(linear_probe(*examples, *test_examples[name]), 4) for name, examples in train_examples.items()}


def _probe_examples(
    encoder: TextEncoder, labels: ByteLabels, captions: list[str]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns attribute -> (features [N, D], labels [N])."""
    tokens, mask = encoder.tokenize(captions)
    embeddings = np.asarray(jax.jit(encoder.encode)(encoder.params, tokens, mask))
    features: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    for embedding, caption in zip(embeddings, captions, strict=True):
        byte_labels = labels(caption, encoder.length)
        for last_byte in (span.end - 1 for span in labels.spans(caption)):
            features.append(embedding[last_byte])
            rows.append(byte_labels[last_byte])
    return {name: (np.array(features), np.array(rows)[:, column]) for column, name in enumerate(labels.objects)}
