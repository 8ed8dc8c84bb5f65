"""The benchmark: our networks and layers beside other inference engines, all on one simulated board."""
