"""The language: text to a syntax tree, and back. Imports nothing else of archc."""
