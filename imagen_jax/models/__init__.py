"""The networks: U-Net, Efficient U-Net, T5 encoder and CLIP; the only package that imports `flax.linen`.

Networks do not depend on configs, meshes or the diffusion process.
"""
