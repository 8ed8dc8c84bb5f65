"""Recognises binary convolutions, and says of each convolution why it is binary or why not.

``signs`` follows a value back to what decides its sign, ``weights`` looks for weights of two magnitudes, ``recognise`` joins
the two, ``verdict`` and ``reasons`` say what was found. ``residue``, ``rounding`` and ``whole_numbers`` prove that nothing is
lost. ``thresholds`` finds the integers that stand for what lies between two binary layers.
"""
