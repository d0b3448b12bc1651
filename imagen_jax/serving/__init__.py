"""A server for a cascade: the engine, which queues, batches and keeps jobs, and its HTTP API with a page.

The engine knows nothing of HTTP: `engine.Engine` takes `jobs.JobRequest` and returns `jobs.Job`.
"""
