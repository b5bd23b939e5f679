"""What runs a graph: numpy (the reference), torch, triton."""
