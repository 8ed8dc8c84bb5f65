"""The host side of bitkiln: one module per stage, in the order data flows."""
