"""The networks: U-Net, Efficient U-Net and T5 encoder; the only room that imports `flax.linen`.

Networks know nothing of configs, meshes or diffusion.
"""
