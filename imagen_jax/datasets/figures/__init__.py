"""The `figures` data set: people in garments with captions, a renderer with a mask of each garment, and a judge."""
