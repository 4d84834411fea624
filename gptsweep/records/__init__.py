"""The data types: what a user asks for (`Point`), what the engine runs (`Row`), what is written to disk (`Sample`).

All are frozen and check their own invariants, so no other code has to: an empty prompt raises `PromptError`, any other invalid
value `ConfigError`.
"""

from .checks import EXAMPLES, coerce, is_number, require
from .logprobs import LOGPROB_DIGITS, SampleLogprobs, TokenLogprobs
from .points import ENGINE_VERSION, Point, point_id
from .rows import (
    FINISH_REASONS,
    FINISH_REASONS_OF_0_1,
    SCHEMA_VERSION,
    Completion,
    FinishReason,
    LineEncoder,
    Prefix,
    Prompt,
    Row,
    Sample,
    Samples,
)
from .samplers import neutral_settings, sampler, samplers_of, steps_of
from .sampling import (
    AUTO,
    NOISES,
    ORDERS,
    OVERFLOWS,
    RNGS,
    SAMPLERS,
    SETTINGS_OF_0_1,
    UNDECIDING,
    Sampling,
    active_steps,
    step_order,
)
from .sources import DTYPES, GPT2_META, LAST_STEP, MODELS, NANOGPT_FILE, PLACE_KEYS, DeviceSettings, ModelSource

__all__ = [
    "AUTO",
    "DTYPES",
    "ENGINE_VERSION",
    "EXAMPLES",
    "FINISH_REASONS",
    "FINISH_REASONS_OF_0_1",
    "GPT2_META",
    "LAST_STEP",
    "LOGPROB_DIGITS",
    "MODELS",
    "NANOGPT_FILE",
    "NOISES",
    "ORDERS",
    "OVERFLOWS",
    "PLACE_KEYS",
    "RNGS",
    "SAMPLERS",
    "SCHEMA_VERSION",
    "SETTINGS_OF_0_1",
    "UNDECIDING",
    "Completion",
    "DeviceSettings",
    "FinishReason",
    "LineEncoder",
    "ModelSource",
    "Point",
    "Prefix",
    "Prompt",
    "Row",
    "Sample",
    "SampleLogprobs",
    "Samples",
    "Sampling",
    "TokenLogprobs",
    "active_steps",
    "coerce",
    "is_number",
    "neutral_settings",
    "point_id",
    "require",
    "sampler",
    "samplers_of",
    "step_order",
    "steps_of",
]
