"""Trains the small text encoder of the shapes data set.

A U-Net attends to the embedding of each byte of a caption, so each embedding should contain all relevant information,
linearly. This is the task: the embedding of each byte is trained to one-hot encode the attributes of the object that
the byte belongs to and of the scene. (Span corruption, the task of the large T5 models, does not work here: the words
of these captions are independent, so the rest of a caption does not predict a masked word.)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from imagen_jax.config.schema import PretrainTextConfig
from imagen_jax.datasets.shapes.captions import MAX_BYTES, parse_caption, sample_caption
from imagen_jax.datasets.shapes.linear_probe import linear_probe
from imagen_jax.datasets.shapes.scenes import BACKGROUNDS, COLORS, INVERSE_RELATION, POSITIONS, SHAPES, SIZES
from imagen_jax.datasets.shapes.source import ShapesSource
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

# Attribute -> its values, "" if the caption does not mention it. The first group is labeled at the bytes that name an
# object, the second, about the scene, at all bytes. An object's role is its relation to the other object. The names are
# those in probe.json.
_OBJECT_ATTRIBUTES = {
    "size": ("", *SIZES),
    "colour": ("", *COLORS),
    "shape": ("", *SHAPES),
    "role": ("", *INVERSE_RELATION),
}
_SCENE_ATTRIBUTES = {
    "position": ("", *POSITIONS),
    "background": ("", *BACKGROUNDS),
    "count": (1, 2, 3, 4),
}
_ATTRIBUTES: dict[str, tuple] = _OBJECT_ATTRIBUTES | _SCENE_ATTRIBUTES
_UNLABELED = -1

_OBJECT_PATTERN = re.compile(
    rf"(?:an?|one|two|three|four) (?:({'|'.join(SIZES)}) )?(?:({'|'.join(COLORS)}) )?"
    rf"(?:({'|'.join(SHAPES)})|object|shape)(?:es|s)?\b"
)


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
    length = MAX_BYTES + 1  # the end of sequence comes after the bytes
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
    count = sum(map(len, _ATTRIBUTES.values()))
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
        return _squared_error(embeddings, _one_hot_targets(batch["labels"]), batch["mask"])

    @jax.jit
    def train_step(params: dict, opt_state: Any, batch: _Batch) -> tuple[dict, Any, jax.Array]:
        loss, gradient = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    tokens = jnp.ones((1, _LENGTH_MULTIPLE), jnp.int32)
    params = jax.jit(encoder.init)(key_from_seed(config.seed), tokens, tokens > 0)["params"]
    return train_step, params, optimizer.init(params)


def _one_hot_targets(labels: jax.Array) -> jax.Array:
    """Converts labels [B, L, attributes] to concatenated one-hot targets [B, L, values]."""
    # one_hot maps unlabeled (-1) to zeros
    parts = [jax.nn.one_hot(labels[..., i], len(values)) for i, values in enumerate(_ATTRIBUTES.values())]
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
    sources = [
        ShapesSource(config.data.seed, split, resolution=16, num_examples=_ENDLESS) for split in config.data.splits
    ]
    per_pool = config.data.pool * config.batch_size
    first = 0
    while True:
        rng = np.random.default_rng(seed_entropy(config.seed, first))
        captions = [
            sample_caption(sources[i % len(sources)].description(i), rng) for i in range(first, first + per_pool)
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
                "labels": np.stack([_label_bytes(caption, length) for caption in part]),
            }


def _label_bytes(caption: str, length: int) -> np.ndarray:
    """Labels each byte of a caption and its end of sequence with the index of each attribute's value.

    Returns:
        int32 [L, attributes], -1 where an attribute is not labeled.
    """
    objects = list(_OBJECT_PATTERN.finditer(caption))
    relation = next((relation for relation in INVERSE_RELATION if f" {relation} " in caption), "")
    roles = (relation, INVERSE_RELATION.get(relation, ""))
    attributes = [(match[1] or "", match[2] or "", match[3] or "") for match in objects]
    description = parse_caption(caption)
    scene = (description.claims[0].position, description.background, description.claims[0].count)

    out = np.full((length, len(_ATTRIBUTES)), _UNLABELED, np.int32)
    used = slice(0, len(caption) + 1)
    _write_labels(out[used], "position", scene)
    for match, role, values in zip(objects, roles, attributes, strict=False):
        _write_labels(out[match.start() : match.end()], "size", (*values, role))
    return out


_COLUMN = {attribute: column for column, attribute in enumerate(_ATTRIBUTES)}
_VALUE_INDEX = [{value: i for i, value in enumerate(values)} for values in _ATTRIBUTES.values()]


def _write_labels(rows: np.ndarray, first_attribute: str, values: tuple) -> None:
    """Sets the labels of `first_attribute` and of those that follow it."""
    for column, value in enumerate(values, _COLUMN[first_attribute]):
        rows[:, column] = _VALUE_INDEX[column][value]


def _probe(encoder: TextEncoder, config: PretrainTextConfig) -> dict[str, float]:
    """Returns test accuracies of linear probes by attribute of an object.

    The captions are of the validation split and describe two objects in a relation; the probes read the embedding of
    the last byte of an object's shape.
    """
    source = ShapesSource(seed=config.data.seed, split="validation", resolution=16, num_examples=_ENDLESS)
    train, test = config.probe.train_captions, config.probe.test_captions
    captions: list[str] = []
    first = 0
    while len(captions) < train + test:
        description = source.description(first)
        if description.relation and all(claim.shape for claim in description.claims):
            captions.append(sample_caption(description, np.random.default_rng(first)))
        first += 1
    train_examples, test_examples = (
        _probe_examples(encoder, captions[:train]),
        _probe_examples(encoder, captions[train:]),
    )
    return {name: round(linear_probe(*examples, *test_examples[name]), 4) for name, examples in train_examples.items()}


def _probe_examples(encoder: TextEncoder, captions: list[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns attribute -> (features [N, D], labels [N])."""
    tokens, mask = encoder.tokenize(captions)
    embeddings = np.asarray(jax.jit(encoder.encode)(encoder.params, tokens, mask))
    features: list[np.ndarray] = []
    labels: dict[str, list] = {name: [] for name in _OBJECT_ATTRIBUTES}
    for embedding, caption in zip(embeddings, captions, strict=True):
        byte_labels = _label_bytes(caption, encoder.length)
        for last_byte in (match.end() - 1 for match in _OBJECT_PATTERN.finditer(caption)):
            features.append(embedding[last_byte])
            for name, values in labels.items():
                values.append(byte_labels[last_byte, _COLUMN[name]])
    return {name: (np.array(features), np.array(values)) for name, values in labels.items()}
