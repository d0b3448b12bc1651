"""The mathematics of diffusion on jax alone: schedules, predictions, losses, guidance, samplers, tiling.

Nothing here knows networks, configs, meshes or files.
"""
