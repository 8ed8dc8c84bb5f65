"""``python -m bitkiln``: the same as the command ``bitkiln``."""

from bitkiln.pipeline.cli import main

main()
