from .atomic import (
    sync_folder as sync_folder,
)
from .atomic import (
    sync_tree as sync_tree,
)
from .atomic import (
    write_array as write_array,
)
from .atomic import (
    write_atomic as write_atomic,
)
from .atomic import (
    write_json as write_json,
)
from .bucket import Bucket as Bucket
from .checkpoints import CheckpointStore as CheckpointStore
from .checkpoints import fault_of as fault_of
from .digest import file_digest as file_digest
from .lease import EXPIRY_SECONDS as EXPIRY_SECONDS
from .lease import Lease as Lease
from .remote_run import open_run as open_run
from .run_folder import RunFolder as RunFolder
from .run_folder import storage_folder as storage_folder
from .software import versions as versions
from .stopwatch import (
    ACCOUNTS as ACCOUNTS,
)
from .stopwatch import (
    Stopwatch as Stopwatch,
)
from .stopwatch import (
    add as add,
)
from .stopwatch import (
    time_ledger as time_ledger,
)
from .sweep_folder import (
    ENDED as ENDED,
)
from .sweep_folder import (
    SweepFolder as SweepFolder,
)
from .sweep_folder import (
    TrialRecord as TrialRecord,
)
from .sweep_folder import (
    TrialSpec as TrialSpec,
)
from .sweep_folder import (
    link_tree as link_tree,
)
from .sweep_folder import (
    now as now,
)
from .sweep_folder import (
    record as record,
)
from .untrusted_files import (
    Files as Files,
)
from .untrusted_files import (
    folders as folders,
)
from .untrusted_files import (
    mapping as mapping,
)
from .untrusted_files import (
    newest as newest,
)
from .untrusted_files import (
    real as real,
)
from .untrusted_files import (
    words as words,
)
