"""The words that arguments accept, as types: `order="valu"` fails in a type checker too. `spec` has them as values."""

from __future__ import annotations

from typing import Literal

Route = Literal["auto", "persistent", "filtered", "clustered"]
Waits = Literal["allowed", "never"]
Dtype = Literal["float32", "bfloat16", "float16"]
IndexDtype = Literal["int32", "int64"]
Order = Literal["none", "index", "value"]
TieBreak = Literal["any", "smallest", "largest"]
Nan = Literal["lowest", "highest"]
