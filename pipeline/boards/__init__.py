"""All that the host knows of boards.

``board`` states what a board is: a request to measure a library, and the measurement that it answers with. A board is reached
through a ``tracker`` (``session`` is one exclusive conversation), over ``ssh``, or made on this machine: ``simulated`` with
the timing of a Cortex-A53, ``emulated`` without, in a ``userland`` of the board's architecture. ``setup`` installs our server
on a real board, ``doctor`` says what this machine lacks.
"""
