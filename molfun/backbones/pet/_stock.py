"""Import metatrain, and suppress warnings that no user can act on."""

from __future__ import annotations

import warnings

from molfun.errors import MissingDependencyError
from molfun.nn.process import ignore_upstream

_NOISE = (
    # TorchScript, in which metatomic is written, is deprecated by torch
    (DeprecationWarning, r".*torch\.jit.*"),
    (DeprecationWarning, r".*`torch.jit.script`.*"),
    (FutureWarning, r".*torch\.jit.*"),
)


def import_metatrain() -> None:
    """Import every module of metatrain that Molfun uses, without the warnings of these imports.

    Raises
    ------
    MissingDependencyError
        If metatrain cannot be imported.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import metatomic.torch  # noqa: F401  (all imported to be there)
            import metatrain.composition
            import metatrain.pet
            import metatrain.scaler
            import metatrain.utils.evaluate_model
            import metatrain.utils.neighbor_lists  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"PET needs the package metatrain ({error}). Install it: pip install 'molfun[pet]'"
        ) from error
    for category, message in _NOISE:
        ignore_upstream(message, category)
