"""Faults of what a run is given, and of what it makes beforehand: each a function ``(bench, trials) -> Result``."""

import random

from benchmarks import embed_kills
from tests.faults.configs import mutated, survives
from tests.faults.harness import Result
from tests.helpers.configs import base_config, sr_config


def mutated_configs(bench, trials):
    """Configs with mistakes made at random: refused in sentences, or else they work."""
    outcomes, rng = [], random.Random(1)
    for make in (base_config, sr_config):
        config = make(**{"mesh.data": 1})
        outcomes += [survives(mutated(config, rng)) for _ in range(trials // 2)]
    failed = [outcome for outcome in outcomes if outcome not in ("refused", "works")]
    said = f"{outcomes.count('refused'):,} refused, {outcomes.count('works'):,} work"
    return Result("configs with mistakes", len(outcomes), len(outcomes) - len(failed), "; ".join([said, *failed[:1]]))


def killed_embedding(bench, trials):
    """Embedding is killed at random moments; the cache comes to the bytes of one that nobody disturbed."""
    folder = bench.new("embedding").parent
    folder.mkdir(parents=True)
    found = embed_kills.kill(embed_kills.tiny_config(1000), folder, trials, 0)
    return Result("embedding, kill -9", trials, len(found.shards_at_kills), f"{found.caches} caches, to the byte")
