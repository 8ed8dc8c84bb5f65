"""Operators as the Cortex-A53 runs them: each one's computation, tuning space, untuned default and implementation."""
