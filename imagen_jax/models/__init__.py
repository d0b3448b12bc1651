"""Networks: the only room that imports flax.linen."""
