"""The command and the Python face of archc."""
