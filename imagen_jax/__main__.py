"""`python -m imagen_jax COMMAND`, the same as `imagen COMMAND`."""

from imagen_jax.cli.app import main

if __name__ == "__main__":
    main()
