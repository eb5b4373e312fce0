"""Read the files that users bring: rows of text with labels, in bounded memory.

`read_rows` streams a file, `discover_labels` learns the label names from the training file and
`LabelEncoder.encode` turns the labels of any split into what a model trains on.
"""

from trainyard.sources.batches import Batch
from trainyard.sources.files import file_digest, read_rows
from trainyard.sources.labels import LabelEncoder, ProblemType, discover_labels, hold_out

__all__ = [
    "Batch",
    "LabelEncoder",
    "ProblemType",
    "discover_labels",
    "file_digest",
    "hold_out",
    "read_rows",
]
