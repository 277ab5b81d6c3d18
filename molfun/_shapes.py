"""Types of arrays and tensors with their shapes, for annotations alone.

jaxtyping is a package of developers: where it is not installed, nothing asks for these names, since
annotations are never evaluated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Bool as Bool
    from jaxtyping import Float as Float
    from jaxtyping import Float32 as Float32
    from jaxtyping import Float64 as Float64
    from jaxtyping import Int64 as Int64
else:
    Bool = Float = Float32 = Float64 = Int64 = Any
