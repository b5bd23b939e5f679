"""From a syntax tree to an optimised graph: elaboration, the IR, ops, passes, cost, checkpoints."""
