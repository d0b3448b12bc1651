"""The networks: U-Net, Efficient U-Net and T5 encoder; the only package that imports `flax.linen`.

Networks do not depend on configs, meshes or the diffusion process.
"""
