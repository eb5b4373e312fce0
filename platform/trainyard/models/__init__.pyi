from .accelerator import build_accelerator as build_accelerator
from .accelerator import compute_deterministically as compute_deterministically
from .build import (
    build_model as build_model,
)
from .build import (
    build_tokenizer as build_tokenizer,
)
from .build import (
    vocabulary_size as vocabulary_size,
)
from .engines.choice import (
    FILE as FILE,
)
from .engines.choice import (
    INT8 as INT8,
)
from .engines.choice import (
    choose as choose,
)
from .engines.choice import (
    machine as machine,
)
from .engines.choice import (
    weights_of as weights_of,
)
from .engines.packed import pack_linears as pack_linears
from .engines.registry import (
    ENGINES as ENGINES,
)
from .engines.registry import (
    EngineName as EngineName,
)
from .engines.registry import (
    check_engine as check_engine,
)
from .engines.registry import (
    start as start,
)
from .hub import (
    MODEL_FILES as MODEL_FILES,
)
from .hub import (
    base_digests as base_digests,
)
from .hub import (
    load_config as load_config,
)
from .hub import (
    locate_model as locate_model,
)
from .hub import (
    model_revision as model_revision,
)
from .hub import (
    resolve_model as resolve_model,
)
from .load import (
    CLASSIFIER as CLASSIFIER,
)
from .load import Dtype as Dtype
from .load import load_model as load_model
from .load import max_tokens as max_tokens
from .padding import FLOAT32_PARAMETERS as FLOAT32_PARAMETERS
from .padding import RIGHT as RIGHT
from .padding import Padding as Padding
from .padding import find_padding as find_padding
from .padding import pad_rows as pad_rows
from .pickled import with_safetensors as with_safetensors
