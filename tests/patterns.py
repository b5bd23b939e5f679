"""The hash behind the mask `random`, in unbounded integers, with the bound that every step must keep."""

PRIME = 46337


def hashed(seed: int, i: int, j: int) -> int:
    """The hash of `random` in Python's unbounded integers; every step fits 32 bits."""

    def cubed(x: int) -> int:
        assert 0 <= x < PRIME
        assert max(x * x, x * x % PRIME * x) < 2**31
        return x**3 % PRIME

    start = cubed((i + seed) % PRIME)
    turn = cubed((cubed((start + i // PRIME + seed) % PRIME) + seed // PRIME) % PRIME)
    first = cubed((start + j) % PRIME)
    return cubed((first + j // PRIME + turn) % PRIME)
