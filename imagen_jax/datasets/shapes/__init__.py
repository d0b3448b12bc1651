"""The `shapes` data set: a grammar of scenes and captions, a renderer, a judge of generated images, a text encoder."""
