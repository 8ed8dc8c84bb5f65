"""The Cortex-A53's page in AArch32 state: the same datapath with 16 vector registers of 128 bits, and A32 for A64.

What is not here is done by plain loops.
"""

from bitkiln.schedules.microkernels.a53_32.bgemm import Bits, Counts
from bitkiln.schedules.microkernels.a53_32.binarize import Binarize
from bitkiln.schedules.microkernels.a53_32.bpack import PackPairs
from bitkiln.schedules.microkernels.a53_32.depthwise import Depthwise, Gather
from bitkiln.schedules.microkernels.a53_32.offsets import Offset
from bitkiln.schedules.microkernels.a53_32.pack import PackPixels
from bitkiln.schedules.microkernels.a53_32.panels import Panels
from bitkiln.schedules.microkernels.a53_32.pool import PoolRow
from bitkiln.schedules.microkernels.a53_32.sgemm import Sgemm
from bitkiln.schedules.microkernels.a53_32.stem import Stem
from bitkiln.schedules.microkernels.a53_32.transform import DataTransform, ResultTransform
from bitkiln.schedules.microkernels.sets import BinaryKernels, KernelSet

SET = KernelSet(
    "a53_32",
    # Sums of 4 channels a register: 8 of 16, beside two sets of pixels' registers and 4 of weights.
    sgemm=((4, 8),),
    sgemm_few=(4, 8),
    sgemm_sevens=(4, 8),
    product=Sgemm,
    offsets=Offset,
    registers=16,
    channels=8,
    winograd=((4, 4), (2, 2), (2, 4)),
    panels=Panels,
    pack_pixels=PackPixels,
    data_transform=DataTransform,
    transform=ResultTransform,
    stem=Stem,
    depthwise=((2, 4), (1, 4), (1, 6), (1, 8), (2, 2), (3, 3), (2, 3), (1, 2)),
    depthwise_tile=Depthwise,
    gather=Gather,
    # Counts of 8 channels a register, beside weights, pixels and two temporaries.
    bgemm=((4, 16),),
    binary=BinaryKernels(PackPairs, Counts, Bits, ("one", "some", "each"), 1),
    binarize=Binarize,
    pool=PoolRow,
)
