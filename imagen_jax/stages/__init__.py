"""A stage of the cascade: what its config describes, its loss, its sampling program, its folder with checkpoints.

Chaining stages is the job of `pipelines`, updating parameters that of `training`.
"""
