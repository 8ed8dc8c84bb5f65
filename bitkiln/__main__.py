"""``python -m bitkiln``: the same as the command ``bitkiln``."""

from bitkiln.pipeline.entry import main

main()
