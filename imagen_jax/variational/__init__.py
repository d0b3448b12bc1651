"""The mathematics of variational autoencoders on JAX alone: likelihoods, KL divergences and bounds.

Nothing here depends on networks, configs, meshes or files.
"""
