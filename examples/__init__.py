"""One `.arch` file per architecture."""
