"""What a type checker says of calls. The checker runs over this file; `type: ignore` that is not needed is an error."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt
import pytest

import drvtopk
from drvtopk import spec, words
from drvtopk.testing.oracle import topk_reference

if TYPE_CHECKING:
    Array = npt.NDArray[Any]

    def calls(x: npt.NDArray[np.float32], device: drvtopk.DeviceView, out: drvtopk.DeviceArray) -> None:
        indices: Array = drvtopk.topk(x, 4)
        both: drvtopk.Selected = drvtopk.topk(x, 4, values=True, order="value")
        made: drvtopk.DeviceArray = drvtopk.topk(device, np.int64(4), nan="highest")
        same: drvtopk.DeviceArray = drvtopk.topk(device, 4, out=out)
        filled: drvtopk.Selected = drvtopk.topk(device, 4, out=out, values=made)
        drvtopk.topk(x, 4, order="valu")  # type: ignore[call-overload]
        drvtopk.topk(device, 4, route="filterd")  # type: ignore[call-overload]
        drvtopk.topk(x, 4, outt=x)  # type: ignore[call-overload]
        drvtopk.prepare(rows=1, width=2, k=1, tie_break="lowest")  # type: ignore[arg-type]
        drvtopk.prepare(rows=1, width=2, k=1, chunk=256)  # type: ignore[call-arg]
        topk_reference(x, 4, order="valu")  # type: ignore[arg-type]
        del indices, both, same, filled


@pytest.mark.parametrize(
    ("word", "allowed"),
    [
        (words.Route, spec.ASKED_ROUTES),
        (words.Waits, spec.WAITS),
        (words.Dtype, spec.DTYPES),
        (words.IndexDtype, spec.INDEX_DTYPES),
        (words.Order, spec.ORDERS),
        (words.TieBreak, spec.TIE_BREAKS),
        (words.Nan, spec.NANS),
    ],
)
def test_a_type_has_the_words_that_a_check_accepts(word: object, allowed: Any) -> None:
    assert get_args(word) == tuple(allowed)


def test_the_package_shows_what_is_public_and_nothing_else() -> None:
    assert set(dir(drvtopk)) == {*drvtopk.__all__, "__version__"}
    for name in drvtopk.__all__:
        assert inspect.getdoc(getattr(drvtopk, name)) or name == "KNOWN_DEVICES", name
    with pytest.raises(AttributeError, match="nothing_of_ours"):
        _ = drvtopk.nothing_of_ours


def test_an_import_imports_no_cuda_and_little_else() -> None:
    """Beside numpy's: no bindings, no compiler, no engine."""
    code = "import sys, numpy; before = set(sys.modules); import drvtopk; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = done.stdout.split()
    assert "drvtopk" in found
    ours = {f"drvtopk.{name}" for name in ("api", "engine", "driver", "compiler", "testing")}
    unwanted = ours | {"concurrent.futures", "importlib.resources"}
    assert not unwanted & set(found) and not [name for name in found if name.startswith("cuda")]
