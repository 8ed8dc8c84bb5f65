"""Makes trained CNNs run as fast as a Cortex-A53 board can.

import bitkiln

model = bitkiln.load("model.onnx")
bitkiln.tune(model, target="rasp3b", minutes=5)
bundle = bitkiln.compile(model, Path("bundle"))
print(bitkiln.profile(bundle.folder).ms)
"""

import os

# Nothing else is imported before somebody asks for it: the commands answer Ctrl-C from the first line of ``pipeline.entry`` on,
# and Python's own answer, a traceback, until then.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitkiln.pipeline.api import (
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

_HERE = os.path.dirname(__file__)  # noqa: PTH120  See above.
# The packages are folders of the repository, reached through links. A checkout without links (git on Windows, a zip) finds them
# here.
if not os.path.isdir(f"{_HERE}/pipeline"):  # noqa: PTH112
    __path__.append(os.path.dirname(_HERE))  # noqa: PTH120

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


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bitkiln.pipeline import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
