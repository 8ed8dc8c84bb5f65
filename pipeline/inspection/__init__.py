"""The parts of ``inspect``: rows of the network's layers, advice, what a terminal prints, the page with the network's graph."""
