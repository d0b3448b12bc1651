import numpy as np
from tensorboardX import SummaryWriter

from benchmarks import diffusers_dreambooth as dreambooth
from imagen_jax.datasets.shapes.captions import parse_caption
from imagen_jax.datasets.shapes.judge import judge
from imagen_jax.datasets.shapes.scenes import COLORS, SHAPES


def test_judge_reads_the_images():
    """At a size that the data set does not have."""
    known, new = dreambooth.known_examples(1, seed=0), dreambooth.stars(tuple(COLORS), seed=1)
    assert len({example.caption for example in known}) == len(COLORS) * len(SHAPES)
    for example in known + new:
        caption = example.caption.replace("sks ", "")
        assert example.image.shape[:2] == (dreambooth.SIZE, dreambooth.SIZE)
        assert judge(example.image, parse_caption(caption)).all
        other = "a square" if example.caption.endswith("circle") else "a circle"
        assert judge(example.image, parse_caption(other)).all == caption.endswith(other[2:])


def test_claims():
    (alone,), (full,) = dreambooth.claims_of(["a red sks star"])
    assert (alone, full) == (parse_caption("a star"), parse_caption("a red star"))
    image = dreambooth.stars(["blue"], seed=0)[0].image
    assert judge(image, alone).all and not judge(image, full).all


def test_losses_are_read_in_order(tmp_path):
    losses = np.float32([0.5, 0.25, 0.125])
    with SummaryWriter(str(tmp_path / "logs/run")) as writer:
        for step in (2, 1, 3):
            writer.add_scalar("loss", losses[step - 1], step)
            writer.add_scalar("lr", 1e-3, step)
    np.testing.assert_array_equal(list(dreambooth.logged_losses(tmp_path)), losses)
