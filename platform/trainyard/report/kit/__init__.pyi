from . import charts as charts
from .assets import static_text as static_text
from .assets import vega_bundle as vega_bundle
from .cells import (
    Cell as Cell,
)
from .cells import (
    Status as Status,
)
from .cells import (
    Value as Value,
)
from .cells import (
    commit as commit,
)
from .cells import (
    duration as duration,
)
from .cells import (
    number as number,
)
from .cells import (
    per_cent as per_cent,
)
from .cells import (
    text_cell as text_cell,
)
from .page import (
    Facts as Facts,
)
from .page import (
    Figure as Figure,
)
from .page import (
    Section as Section,
)
from .page import (
    Table as Table,
)
from .page import (
    Text as Text,
)
from .page import (
    policy as policy,
)
from .page import (
    render as render,
)
