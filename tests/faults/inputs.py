"""Faults of inputs: configs and embedding caches. Each is a function `(bench, trials) -> Result`."""

import random

from benchmarks import embed_kills
from tests.faults.configs import check_mutated, mutated
from tests.faults.harness import Result
from tests.helpers.configs import base_config, sr_config


def mutated_configs(bench, trials):
    """Configs with random mistakes: they are refused with a message, or work."""
    outcomes, rng = [], random.Random(1)
    for make in (base_config, sr_config):
        config = make(**{"mesh.data": 1})
        outcomes += [check_mutated(mutated(config, rng)) for _ in range(trials // 2)]
    failed = [outcome for outcome in outcomes if outcome not in ("refused", "works")]
    counts = f"{outcomes.count('refused'):,} refused, {outcomes.count('works'):,} work"
    return Result("mutated configs", len(outcomes), len(outcomes) - len(failed), "; ".join([counts, *failed[:1]]))


def killed_embedding(bench, trials):
    """Kills embedding at random times; the cache must be byte-identical to an undisturbed one."""
    folder = bench.new_workdir("embedding").parent
    folder.mkdir(parents=True)
    outcome = embed_kills.kill_repeatedly(embed_kills.tiny_config(1000), folder, trials, 0)
    return Result(
        "embedding, kill -9", trials, len(outcome.shards_at_kills), f"{outcome.caches} caches, byte-identical"
    )
