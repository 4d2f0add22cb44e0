"""The mathematics that every method shares: linear layers, adapters, parts, and how they are put together."""
