"""Trains the small text encoder of the shapes data set.

A U-Net looks at the embeddings of a caption's bytes one by one, so each should say all that matters about it, plainly.
That is the task: the embedding of every byte has to be what the caption claims of the thing which that byte belongs to,
and of the scene as a whole, one number an answer. (Span corruption, the task of the large T5 models, has nothing to
teach here: the words of these captions are drawn independently, so the ones left do not tell the ones cut out.)
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
from imagen_jax.errors import ConfigError
from imagen_jax.io.atomic import write_json
from imagen_jax.models.t5 import T5Encoder
from imagen_jax.text.encoder import TextEncoder, build_encoder, folder_encoder, in_memory_reader
from imagen_jax.text.t5_weights import save_folder
from imagen_jax.text.tokenizer import byte_tokenizer

Batch = dict[str, Any]  # name -> array
ENDLESS = 2**62  # as many captions as the source can be asked for
WIDTHS = 24  # batches are padded to a multiple of it: few programs to compile, little padding

# Question -> its answers, "" where the caption does not say. The first group is asked of the bytes that name a thing,
# about that thing; the second of all bytes, about the scene. A thing's role is the relation in which it stands to the
# other one.
OF_A_THING = {
    "size": ("", *SIZES),
    "colour": ("", *COLORS),
    "shape": ("", *SHAPES),
    "role": ("", *INVERSE_RELATION),
}
OF_THE_SCENE = {
    "position": ("", *POSITIONS),
    "background": ("", *BACKGROUNDS),
    "count": (1, 2, 3, 4),
}
QUESTIONS: dict[str, tuple] = OF_A_THING | OF_THE_SCENE
NOT_ASKED = -1

THING = re.compile(
    rf"(?:an?|one|two|three|four) (?:({'|'.join(SIZES)}) )?(?:({'|'.join(COLORS)}) )?"
    rf"(?:({'|'.join(SHAPES)})|object|shape)(?:es|s)?\b"
)


def pretrain(config: PretrainTextConfig, out: Path) -> dict[str, dict[str, float]]:
    """Trains the encoder, writes it to a folder and probes it.

    Returns:
        Accuracies of linear probes, before and after training.
    """
    train_step, params, opt_state = make_train_step(config)
    untrained = jax.tree.map(np.asarray, params)

    batches = labelled_batches(config)
    progress = tqdm(range(config.steps), desc="pretraining", unit="step")
    for step in progress:
        params, opt_state, loss = train_step(params, opt_state, next(batches))
        if step % 20 == 0:
            progress.set_postfix(loss=f"{float(loss):.3f}")

    fields = config.encoder.to_dict()
    save_folder(out, fields, jax.tree.map(np.asarray, params))
    length = MAX_BYTES + 1  # the end of sequence comes after the bytes
    figures = {
        "untrained": probe(build_encoder(fields, in_memory_reader(untrained), byte_tokenizer(length), "float32"), config),
        "pretrained": probe(folder_encoder(out, length), config),
    }
    write_json(out / "probe.json", figures)
    return figures


def make_train_step(config: PretrainTextConfig) -> tuple[Callable, dict, Any]:
    """(jitted step: (params, opt_state, batch) -> (params, opt_state, loss), initial params, initial opt_state)."""
    count = sum(map(len, QUESTIONS.values()))
    if config.encoder.d_model < count:
        raise ConfigError(
            f"config.encoder.d_model {config.encoder.d_model} is too few for the {count} answers that an embedding "
            "has to hold: raise it"
        )
    encoder = T5Encoder(**config.encoder.to_dict())
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, config.warmup_steps, config.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optax.adam(schedule, b2=config.b2))

    def loss_fn(params: dict, batch: Batch) -> jax.Array:
        embeddings: Any = encoder.apply({"params": params}, batch["tokens"], batch["mask"])
        return squared_error(embeddings, answers(batch["labels"]), batch["mask"])

    @jax.jit
    def train_step(params: dict, opt_state: Any, batch: Batch) -> tuple[dict, Any, jax.Array]:
        loss, gradient = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    tokens = jnp.ones((1, WIDTHS), jnp.int32)
    params = jax.jit(encoder.init)(jax.random.key(config.seed), tokens, tokens > 0)["params"]
    return train_step, params, optimizer.init(params)


def answers(labels: jax.Array) -> jax.Array:
    """The labels [B, L, questions] as what embeddings should be: 1 for each answer, else 0; [B, L, answers]."""
    # what is not asked is -1, of which one_hot makes zeros
    parts = [jax.nn.one_hot(labels[..., i], len(given)) for i, given in enumerate(QUESTIONS.values())]
    return jnp.concatenate(parts, axis=-1)


def squared_error(embeddings: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over the bytes that the mask [B, L] shows of |embedding - target|²; [B, L, D], [B, L, answers ≤ D] -> []

    Whatever the embeddings have beyond the answers should be 0.
    """
    surplus = embeddings.shape[-1] - targets.shape[-1]
    errors = jnp.sum((embeddings - jnp.pad(targets, ((0, 0), (0, 0), (0, surplus)))) ** 2, axis=-1)
    return jnp.sum(errors, where=mask) / jnp.maximum(jnp.sum(mask), 1)


def labelled_batches(config: PretrainTextConfig) -> Iterator[Batch]:
    """Batches, without end, of tokens int32 [B, L], mask bool [B, L], labels int32 [B, L, questions]; L varies."""
    sources = [ShapesSource(config.data.seed, split, resolution=16, size=ENDLESS) for split in config.data.splits]
    per_pool = config.data.pool * config.batch_size
    first = 0
    while True:
        rng = np.random.default_rng((config.seed, first))
        captions = [sample_caption(sources[i % len(sources)].description(i), rng) for i in range(first, first + per_pool)]
        first += per_pool
        captions.sort(key=len)
        for row in rng.permutation(config.data.pool) * config.batch_size:
            part = captions[row : row + config.batch_size]
            length = min(-(-(len(part[-1]) + 1) // WIDTHS) * WIDTHS, config.data.max_length)
            tokens, mask = byte_tokenizer(length)(part)
            yield {"tokens": tokens, "mask": mask, "labels": np.stack([labels(caption, length) for caption in part])}


def labels(caption: str, length: int) -> np.ndarray:
    """What the caption answers to each question at each of its bytes and at its end: int32 [L, questions]."""
    found = list(THING.finditer(caption))
    said = next((relation for relation in INVERSE_RELATION if f" {relation} " in caption), "")
    roles = (said, INVERSE_RELATION.get(said, ""))
    things = [(thing[1] or "", thing[2] or "", thing[3] or "") for thing in found]
    description = parse_caption(caption)
    scene = (description.claims[0].position, description.background, description.claims[0].count)

    out = np.full((length, len(QUESTIONS)), NOT_ASKED, np.int32)
    used = slice(0, len(caption) + 1)
    write(out[used], "position", scene)
    for thing, role, values in zip(found, roles, things, strict=False):
        write(out[thing.start() : thing.end()], "size", (*values, role))
    return out


COLUMNS = {question: column for column, question in enumerate(QUESTIONS)}
INDEX = [{answer: i for i, answer in enumerate(answers)} for answers in QUESTIONS.values()]


def write(rows: np.ndarray, question: str, answers: tuple) -> None:
    """Set the labels of a question and of those that follow it."""
    for column, answer in enumerate(answers, COLUMNS[question]):
        rows[:, column] = INDEX[column][answer]


def probe(encoder: TextEncoder, config: PretrainTextConfig) -> dict[str, float]:
    """Accuracies of linear probes, for captions of two things in a relation, from the validation split.

    "size", "colour", "shape", "role": of a thing, read at the last byte of its shape's word.
    """
    source = ShapesSource(seed=config.data.seed, split="validation", resolution=16, size=ENDLESS)
    train, test = config.probe.train_captions, config.probe.test_captions
    captions: list[str] = []
    first = 0
    while len(captions) < train + test:
        description = source.description(first)
        if description.relation and all(claim.shape for claim in description.claims):
            captions.append(sample_caption(description, np.random.default_rng(first)))
        first += 1
    seen, unseen = probe_examples(encoder, captions[:train]), probe_examples(encoder, captions[train:])
    return {name: round(linear_probe(*seen[name], *unseen[name]), 4) for name in seen}


def probe_examples(encoder: TextEncoder, captions: list[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name of a probe -> (features [N, D], labels [N])."""
    tokens, mask = encoder.tokenize(captions)
    embeddings = np.asarray(jax.jit(encoder.encode)(encoder.params, tokens, mask))
    features: list[np.ndarray] = []
    answered: dict[str, list] = {name: [] for name in OF_A_THING}
    for embedding, caption in zip(embeddings, captions, strict=True):
        truth = labels(caption, encoder.length)
        for at in (thing.end() - 1 for thing in THING.finditer(caption)):
            features.append(embedding[at])
            for name, given in answered.items():
                given.append(truth[at, COLUMNS[name]])
    return {name: (np.array(features), np.array(given)) for name, given in answered.items()}
