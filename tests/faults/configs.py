"""Configs with mistakes made at random, and whether each is refused in a sentence, or works."""

import copy
import json
import random
import traceback

import jax

from imagen_jax.config.load import from_json, load_config, to_json
from imagen_jax.config.schema import StageConfig
from imagen_jax.datasets.registry import make_source
from imagen_jax.errors import ConfigError
from imagen_jax.stages import stage as stages
from imagen_jax.training.validate import check_training

# what people and programs put where something else belongs
VALUES = [
    *(None, True, False, "", "x", "none", "float16", "True", "8", "a\0b", "../..", "é" * 300),
    *(-1, 0, 1, 2, 3, 5, 7, 8, 12, 16, 64, 1000, 10**6, 10**30, -(10**30)),
    *(0.0, -0.5, 0.5, 0.999, 1.0, 1.5, 100.0, 1e-300, 1e300, float("nan"), float("inf"), -float("inf")),
    *(
        (),
        [],
        {},
        (1,),
        (1, 2),
        (8, 8),
        (0, 0),
        (1, 2, 3),
        ("self",),
        (("self",),),
        ((), ()),
        ("text", 1),
        {"a": 1},
        {1: 2},
    ),
    *((("(", ("data",)),), (("stem", ("data", "data")),), ((".*", 3),), "abc", b"bytes", 3 + 4j, object),
]
# of these the network consists: what is changed elsewhere does not change whether it can be traced
TRACED = ("model", "image_size", "low_res_size", "channels", "text.length", "diffusion.variance_type")
MOST = 1024  # beyond it tracing is slow, and right all the same


def mutated(config: StageConfig, rng: random.Random) -> tuple[dict, list[str]]:
    """A copy of a config, nested dicts, with one to three mistakes, and the keys that they are in."""
    tree = copy.deepcopy(config.to_dict())
    changed = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        group, path = tree, []
        while True:
            name = rng.choice(sorted(group, key=str))
            path.append(str(name))
            if not (isinstance(group[name], dict) and group[name]) or rng.random() < 0.02:
                break
            group = group[name]
        match rng.choice(("value", "value", "value", "scaled", "scaled", "scaled", "missing", "misspelt", "surplus")):
            case "value":
                group[name] = rng.choice(VALUES)
            case "scaled" if isinstance(group[name], (int, float)) and not isinstance(group[name], bool):
                group[name] *= rng.choice((-1, 0, 0.5, 2, 2, 3, 4))
            case "missing":
                del group[name]
            case "misspelt":
                letters = list(str(name))
                letters.insert(rng.randrange(len(letters) + 1), rng.choice("aeiou_."))
                group["".join(letters)] = group.pop(name)
            case _:
                group[f"{name}_{rng.randrange(100)}"] = rng.choice(VALUES)
        changed.append(".".join(path))
        if not tree:
            break
    return tree, changed


def survives(config: StageConfig | tuple[dict, list[str]]) -> str:
    """What comes of a config: "refused", "works", or else what went wrong, as a traceback.

    One that is not refused has to be worth it: its network can be traced, and its data can be opened.
    """
    tree, changed = config if isinstance(config, tuple) else (config.to_dict(), list(TRACED))
    try:
        made = load_config(tree)
        check_training(made, jax.devices()[:1])
        make_source(made.data, made.data.split, made.image_size)
    except ConfigError as error:
        sentences = all("\n" not in problem and 20 < len(problem) < 1000 for problem in error.problems)
        return "refused" if sentences else f"said: {error}"
    except Exception:
        return traceback.format_exc()
    try:
        assert from_json(json.loads(json.dumps(to_json(made)))) == made
        small = max(*made.image_hw, made.model.channels, made.text.length) <= MOST
        if small and any(key.startswith(TRACED) for key in changed):
            network = stages.make_network(made)
            arguments = stages.network_arguments(made, 8, made.image_hw)
            jax.eval_shape(network.init, jax.random.key(0), *arguments)
    except Exception:
        return traceback.format_exc()
    return "works"
