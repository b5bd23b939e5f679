"""What an editor asks of a `.arch` file, answered from the parse and the elaboration that `check` runs.

`analysis.py` reads a text once per version; `names.py` knows which words of it mean the same thing;
`hover.py`, `completion.py` and `rename.py` answer; `server.py` alone speaks the protocol. Until there
places are offsets into the text.
"""
