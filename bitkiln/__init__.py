"""Makes trained CNNs run as fast as a Cortex-A53 board can.

import bitkiln

model = bitkiln.load("model.onnx")
bitkiln.tune(model, target="rasp3b", minutes=5)
bundle = bitkiln.compile(model, Path("bundle"))
print(bitkiln.profile(bundle.folder).ms)
"""

from pathlib import Path

_HERE = Path(__file__).parent
# The packages are folders of the repository, reached through links. A checkout without links (git on Windows, a zip) finds them
# here.
if not (_HERE / "pipeline").is_dir():
    __path__.append(str(_HERE.parent))

from bitkiln.pipeline.api import (  # noqa: E402  The packages have to be found first.
    BitkilnError,
    compile,
    deploy,
    inspect,
    load,
    open_bundle,
    profile,
    run,
    tune,
    verify,
)

__all__ = [
    "BitkilnError",
    "compile",
    "deploy",
    "inspect",
    "load",
    "open_bundle",
    "profile",
    "run",
    "tune",
    "verify",
]
