"""`archc show`: one picture of a model, drawn as text, as SVG and as an HTML page.

`picture` is a tree of blocks read off the graph: repeats folded, shapes symbolic, the cost of each
block, its lines in the text, and the flow of values among its parts. `text`, `svg` and `page` draw it.
"""
