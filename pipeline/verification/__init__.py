"""The parts of ``verify``: whose bundle it is, each step against the reference, why they differ, the outputs, the report."""
