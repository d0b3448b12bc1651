"""Config files of the experiments; installed with the package as `imagen_jax.configs`."""
