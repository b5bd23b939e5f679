"""For each guard of each rule a program on which it matters: see `test_guards.py`."""

from .base import Caught, named
from .canonicalize import CANCEL, CANONICALIZE, SINK
from .chunk_scan import LOOPS, PRODUCTS
from .epilogue import EPILOGUE
from .fft_convolution import CONVOLVE
from .fuse_loss import LOSS
from .fuse_loss import PICK as PICKED
from .fuse_pointwise import REGION
from .group_experts import GROUP
from .products import FOLD, LINEAR
from .products import PACK as PROJECT
from .split_sink import SINK as SPLIT
from .tile_attention import ATTEND
from .visible_keys import VISIBLE
from .weights import DERIVE, PACK, QUANTISE, READ_CODES

CAUGHT: dict[str, Caught] = {
    **named("canonicalize", CANONICALIZE),
    **named("canonicalize/cancel-relabel", CANCEL),
    **named("chunk-products/chunk-products", PRODUCTS),
    **named("chunk-scan/chunk-scan", LOOPS),
    **named("sink-merges/cancel-relabel", CANCEL),
    **named("sink-merges/sink-merge", SINK),
    **named("group-experts/group", GROUP),
    **named("fft-convolution/convolve", CONVOLVE),
    **named("split-sink/split", SPLIT),
    **named("tile-attention/attend", ATTEND),
    **named("visible-keys/visible", VISIBLE),
    **named("pack-projections/pack", PROJECT),
    **named("fuse-norm-linear/fold-norm", FOLD),
    **named("fuse-loss/pick-first", PICKED),
    **named("fuse-loss/loss", LOSS),
    **named("pack-weights/pack-weight", PACK),
    **named("derive-parameters/derive", DERIVE),
    **named("fuse-linear/linear", LINEAR | EPILOGUE),
    **named("fuse-pointwise/region", REGION),
    **named("quantise/quantise", QUANTISE),
    **named("read-codes/read-codes", READ_CODES),
}

__all__ = ["CAUGHT", "Caught"]
