"""Export base and adapter to a folder for other tools."""
