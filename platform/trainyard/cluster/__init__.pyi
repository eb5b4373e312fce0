from .autoscaler import Node as Node
from .autoscaler import may_grow as may_grow
from .autoscaler import room_asked_for as room_asked_for
from .capacity import (
    fitting as fitting,
)
from .capacity import (
    greatest_count as greatest_count,
)
from .capacity import (
    nodes_for as nodes_for,
)
from .capacity import (
    share_out as share_out,
)
from .capacity import (
    worker_count as worker_count,
)
from .capacity import (
    worker_resources as worker_resources,
)
from .cpu import claim_processor as claim_processor
from .placement_groups import (
    release_orphans as release_orphans,
)
from .ray_train import (
    build_trainer as build_trainer,
)
from .ray_train import (
    cause_of as cause_of,
)
from .ray_train import (
    dead_ranks as dead_ranks,
)
from .session import TOKENIZERS as TOKENIZERS
from .session import owns_gpu as owns_gpu
from .session import ray_session as ray_session
