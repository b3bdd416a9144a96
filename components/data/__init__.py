"""From raw files to Examples."""
