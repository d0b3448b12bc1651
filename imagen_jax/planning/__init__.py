"""Memory and speed estimates of a run on TPUs that are not attached, from programs compiled ahead of time.

Nothing imports this room but its command; what is planned is built by the rooms that run it.
"""
