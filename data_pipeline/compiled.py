"""Machine code from Python functions, made when they are first called.

No `fastmath`: a sum is taken in the order written and a product is rounded before it is added to,
so that the bits don't depend on what a CPU can vectorise. The interpreter's lock is released, so
that threads run side by side. The code is kept in `__pycache__`, where that can be written, until
the file that it came from is changed.
"""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from numba import njit  # type: ignore[import-untyped, unused-ignore]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def compiled(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """The function as machine code.

    It may call NumPy and compiled functions of its own file. One of another file it would keep as
    it was, when that file is changed.
    """
    return cast(Callable[Parameters, Result], _compiled(function))


def _compiled(function: Callable[..., Any]) -> Any:
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
        # Neither the package's folder nor the user's can be written: compile in every process.
        return njit(cache=False, nogil=True)(function)
