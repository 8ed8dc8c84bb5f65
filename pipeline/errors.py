"""Every error a user can meet.

BitkilnError
├── ModelError            the model file cannot be used
│   ├── UnsupportedLayer  an operator we do not know, named with its node
│   └── ShapeNeeded       a dynamic dimension without --shape
├── BundleError           a bundle is damaged, altered or made for another CPU
├── InputError            an image or tensor given to run is not usable
├── BoardError            no tracker, no board, or a board that failed
├── RecordError           a tuning log that cannot be written or read
├── VerifyError           the compiled network disagrees with the reference
└── SetupError            a tool this machine lacks (compiler, emulator, userland)

Each message is one line that names the file, node or board and says what to do. The command line prints it and
exits with status 2; a traceback appears only with ``--debug``.
"""


class BitkilnError(Exception):
    """Base of all errors reported to the user as one line."""


class ModelError(BitkilnError):
    """The model file cannot be used as it is."""


class UnsupportedLayer(ModelError):
    """The model has an operator we cannot run; the message names its node and type."""


class ShapeNeeded(ModelError):
    """The model has a dynamic dimension and no ``--shape`` fixes it."""


class BundleError(BitkilnError):
    """A bundle is incomplete, altered, or made for another CPU."""


class InputError(BitkilnError):
    """An image or tensor given to run cannot be used."""


class BoardError(BitkilnError):
    """A tracker or board cannot be reached, or failed."""


class RecordError(BitkilnError):
    """A tuning log cannot be read or written."""


class VerifyError(BitkilnError):
    """The compiled network disagrees with the reference."""


class SetupError(BitkilnError):
    """This machine lacks a tool that the command needs."""
