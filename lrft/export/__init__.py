"""From base and adapter to a folder that other tools load."""
