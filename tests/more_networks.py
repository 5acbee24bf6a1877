"""Networks beyond ``networks.HAZARDS``: everything else that capture must read.

They are apart because the metanetwork laws run on each of ``HAZARDS``, which takes time.
"""

from __future__ import annotations

from hazards_attention import ATTENTION_HAZARDS
from hazards_convolution import CONVOLUTION_HAZARDS
from hazards_mixtures import MIXTURE_HAZARDS
from hazards_recurrent import RECURRENT_HAZARDS
from networks import HAZARDS, Hazard

__all__ = ["ALL_HAZARDS", "MORE_HAZARDS"]

MORE_HAZARDS: list[Hazard] = [
    *CONVOLUTION_HAZARDS,
    *ATTENTION_HAZARDS,
    *RECURRENT_HAZARDS,
    *MIXTURE_HAZARDS,
]
ALL_HAZARDS: list[Hazard] = [*HAZARDS, *MORE_HAZARDS]
