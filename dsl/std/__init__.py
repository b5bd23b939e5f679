"""The standard library, as `.arch` text."""
