from .columns import AS_JSON as AS_JSON
from .columns import Batch as Batch
from .columns import TextFormat as TextFormat
from .columns import did_you_mean as did_you_mean
from .columns import listing as listing
from .demo import EXAMPLES as EXAMPLES
from .files import files_of as files_of
from .files import read_rows as read_rows
from .held_out import normalize_text as normalize_text
from .labels import LabelEncoder as LabelEncoder
from .own_files import OwnFile as OwnFile
from .parquet_files import class_label_names as class_label_names
from .parquet_files import open_parquet as open_parquet
from .quick_checks import warnings as warnings
from .splits import (
    NO_LABEL as NO_LABEL,
)
from .splits import (
    Split as Split,
)
from .splits import (
    Splits as Splits,
)
from .splits import (
    find_splits as find_splits,
)
from .splits import (
    is_test as is_test,
)
from .splits import (
    sample_rows as sample_rows,
)
from .splits import (
    selection_and_test as selection_and_test,
)
from .splits import (
    split_file as split_file,
)
from .splits import (
    split_rows as split_rows,
)
from .tables import as_file as as_file
from .token_table import TokenTable as TokenTable
from .tokenize import (
    PreparedData as PreparedData,
)
from .tokenize import (
    prepare as prepare,
)
from .tokenize import (
    quiet_ray_data as quiet_ray_data,
)
