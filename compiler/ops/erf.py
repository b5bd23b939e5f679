"""The error function in float64, vectorised: rational approximations on four intervals.

The coefficients are those of FreeBSD's msun `s_erf.c` (Sun Microsystems, 1993); error below 1 ulp.
"""

from __future__ import annotations

from collections.abc import Callable

from .numeric import Array, np

# Coefficients lowest power first: numerator, denominator.
# |x| < 0.84375: erf(x) = x + x P(x^2) / Q(x^2)
CENTRE = (
    (
        1.28379167095512558561e-01,
        -3.25042107247001499370e-01,
        -2.84817495755985104766e-02,
        -5.77027029648944159157e-03,
        -2.37630166566501626084e-05,
    ),
    (
        1.0,
        3.97917223959155352819e-01,
        6.50222499887672944485e-02,
        5.08130628187576562776e-03,
        1.32494738004321644526e-04,
        -3.96022827877536812320e-06,
    ),
)
# 0.84375 <= |x| < 1.25: erf(x) = KNEE + P(|x| - 1) / Q(|x| - 1)
KNEE = 8.45062911510467529297e-01
SHOULDER = (
    (
        -2.36211856075265944077e-03,
        4.14856118683748331666e-01,
        -3.72207876035701323847e-01,
        3.18346619901161753674e-01,
        -1.10894694282396677476e-01,
        3.54783043256182359371e-02,
        -2.16637559486879084300e-03,
    ),
    (
        1.0,
        1.06420880400844228286e-01,
        5.40397917702171048937e-01,
        7.18286544141962662868e-02,
        1.26171219808761642112e-01,
        1.36370839120290507362e-02,
        1.19844998467991074170e-02,
    ),
)
# beyond: erf(x) = 1 - exp(-x^2 - 0.5625 + P(1/x^2) / Q(1/x^2)) / |x|, one pair below 1/0.35
NEAR = (
    (
        -9.86494403484714822705e-03,
        -6.93858572707181764372e-01,
        -1.05586262253232909814e01,
        -6.23753324503260060396e01,
        -1.62396669462573470355e02,
        -1.84605092906711035994e02,
        -8.12874355063065934246e01,
        -9.81432934416914548592e00,
    ),
    (
        1.0,
        1.96512716674392571292e01,
        1.37657754143519042600e02,
        4.34565877475229228821e02,
        6.45387271733267880336e02,
        4.29008140027567833386e02,
        1.08635005541779435134e02,
        6.57024977031928170135e00,
        -6.04244152148580987438e-02,
    ),
)
FAR = (
    (
        -9.86494292470009928597e-03,
        -7.99283237680523006574e-01,
        -1.77579549177547519889e01,
        -1.60636384855821916062e02,
        -6.37566443368389627722e02,
        -1.02509513161107724954e03,
        -4.83519191608651397019e02,
    ),
    (
        1.0,
        3.03380607434824582924e01,
        3.25792512996573918826e02,
        1.53672958608443695994e03,
        3.19985821950859553908e03,
        2.55305040643316442583e03,
        4.74528541206955367215e02,
        -2.24409524465858183362e01,
    ),
)


def erf(x: Array) -> Array:
    """erf(x) in float64; odd, erf(inf) = 1, NaN stays NaN."""
    given = np.asarray(x, np.float64)
    size = np.abs(given)
    result = np.where(size >= 6.0, np.sign(given), given)
    for low, high, piece in PIECES:
        chosen = (size >= low) & (size < high)
        result[chosen] = np.copysign(piece(size[chosen]), given[chosen])
    return np.asarray(result)


def _centre(a: Array) -> Array:
    return np.asarray(a + a * _ratio(CENTRE, a * a))


def _shoulder(a: Array) -> Array:
    return np.asarray(KNEE + _ratio(SHOULDER, a - 1))


def _near(a: Array) -> Array:
    return 1 - _tail(NEAR, a)


def _far(a: Array) -> Array:
    return 1 - _tail(FAR, a)


def _tail(pair: tuple[tuple[float, ...], ...], size: Array) -> Array:
    return np.asarray(np.exp(-size * size - 0.5625 + _ratio(pair, 1 / (size * size))) / size)


def _ratio(pair: tuple[tuple[float, ...], ...], x: Array) -> Array:
    return np.asarray(_polynomial(pair[0], x) / _polynomial(pair[1], x))


def _polynomial(coefficients: tuple[float, ...], x: Array) -> Array:
    total = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + coefficient
    return total


# |x| from, to, erf(|x|)
PIECES: tuple[tuple[float, float, Callable[[Array], Array]], ...] = (
    (0.0, 0.84375, _centre),
    (0.84375, 1.25, _shoulder),
    (1.25, 1 / 0.35, _near),
    (1 / 0.35, 6.0, _far),
)
