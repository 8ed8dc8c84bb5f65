"""From a model to a verdict.

``build`` runs all stages, ``compare`` holds variants against each other, ``evaluate`` counts right answers, and ``card`` and
``gallery`` show what came of it.
"""
