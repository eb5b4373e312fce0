"""Runs in a bucket (s3://, gs://): a scratch folder on each node, the bucket as the one truth.

`bucket` reads and writes objects, `transfer` copies folders with their manifest of hashes, `lease` says who
may run, `checkpoints` which of them count, and `run` puts it together as a `RunFolder`.
"""
