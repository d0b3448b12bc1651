"""From records to batches: image decoding, shuffling, bucketing, corrupt records, the Grain pipeline.

Where records come from is the job of `datasets`.
"""
