"""The Cortex-A53's page: 32 vector registers of 128 bits, two instructions a cycle in order, one of them vector arithmetic.

Sizes keep all sums in registers beside what feeds them; docs/kernels.md and docs/kernels-binary.md have the cycles of each.
"""

from bitkiln.schedules.microkernels.a53.bgemm import Bits, Counts
from bitkiln.schedules.microkernels.a53.binarize import Binarize
from bitkiln.schedules.microkernels.a53.bpack import PackPairs
from bitkiln.schedules.microkernels.a53.curve import FUNCTIONS, Curve
from bitkiln.schedules.microkernels.a53.decay import Decay
from bitkiln.schedules.microkernels.a53.depthwise import Depthwise, Gather
from bitkiln.schedules.microkernels.a53.offsets import Offset
from bitkiln.schedules.microkernels.a53.pool import PoolRow
from bitkiln.schedules.microkernels.a53.sgemm import Sgemm
from bitkiln.schedules.microkernels.a53.stem import Stem
from bitkiln.schedules.microkernels.sets import BinaryKernels, KernelSet

SET = KernelSet(
    "a53",
    # Sums of 4 channels a register: 24 of 32 at most, beside pixels and two vectors of weights.
    sgemm=((8, 8), (8, 12), (7, 12), (11, 8), (6, 12), (6, 16), (4, 16), (4, 20)),
    # Two registers hold weights that are widened.
    sgemm_halves=((8, 8), (6, 12), (4, 16), (4, 20)),
    sgemm_few=(4, 16),
    sgemm_sevens=(7, 12),
    product=Sgemm,
    offsets=Offset,
    finishes=True,
    stacks=True,
    winograd=((4, 4), (2, 2), (2, 4), (1, 2)),
    stem=Stem,
    depthwise=((1, 4), (1, 8), (2, 4), (2, 6), (2, 7), (3, 4)),
    depthwise_tile=Depthwise,
    gather=Gather,
    in_place=True,
    strips=True,
    # Counts of 8 channels a register; the last size writes whole cache lines of floats.
    bgemm=((6, 32), (12, 16), (8, 24), (4, 32), (8, 16), (10, 16), (2, 64)),
    binary=BinaryKernels(PackPairs, Counts, Bits, ("one", "some", "each"), 3, floats=True),
    whole=True,
    binarize=Binarize,
    pool=PoolRow,
    decay=Decay,
    curve=Curve,
    curves=frozenset(FUNCTIONS),
)
