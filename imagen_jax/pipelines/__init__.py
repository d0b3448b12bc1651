"""From prompts to images: trained stages loaded, chained and sampled, and the folder that images are written to.

The sampling program of a single stage lives in `stages`, the samplers in `diffusion`.
"""
