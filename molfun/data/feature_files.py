"""Pre-computed features: pickle, npz and safetensors files, read without running anything.

A pickle is a program, and unpickling runs it. Here a pickle is read by an interpreter that knows
only the few names that numpy arrays and torch tensors are made of, and for these it calls
functions of this module, never the originals: ``numpy.core.multiarray._reconstruct`` may allocate
any amount of memory, and ``torch.storage._load_from_bytes`` unpickles whatever it is given.
"""

from __future__ import annotations

import contextlib
import io
import math
import pickle
import pickletools
import re
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from molfun._formats import foreign
from molfun._io import load_safetensors, save_safetensors
from molfun._limits import Limit, read_bytes
from molfun._paths import as_path
from molfun.data.npz import read_npz
from molfun.errors import CheckpointError, DataError, MolfunError, UnsafeFileError
from molfun.text import first_line

if TYPE_CHECKING:
    import torch

_KINDS = (".safetensors", ".npz", ".pkl", ".pickle")
FEATURE_SUFFIXES = (*_KINDS, *(f"{kind}.gz" for kind in _KINDS))
"""Suffixes in the order in which features are looked for."""
MAX_BYTES = Limit("FEATURE_BYTES", 2**31)
"""Largest unpacked features of one sample; 1000 residues by 20,000 sequences need 0.2 GB."""
MAX_OPCODES = Limit("PICKLE_INSTRUCTIONS", 2_000_000, "instructions")
"""Most instructions in a pickle; a feature dict has a few for each array and each text."""

_NUMERIC_TYPES = re.compile(r"[<>|=]?(?:[?bB]|[iufcSUV]\d{1,9}|[biufc]\d{1,2})", re.ASCII)


def read_features(path: str | Path) -> dict[str, np.ndarray | torch.Tensor]:
    """Read the features of one sample.

    Parameters
    ----------
    path
        ``.pkl`` or ``.pickle`` (a dict of numpy arrays or torch tensors), ``.npz`` or
        ``.safetensors``, also with ``.gz``.

    Returns
    -------
    dict
        Name to array (pickle, npz) or tensor (safetensors, tensors in a pickle).

    Raises
    ------
    DataError
        If the file is missing, damaged, or not a dict of arrays.
    UnsafeFileError
        If reading it would run code or exhaust memory. Nothing in it is run.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "1a4w.npz"
    >>> np.savez(path, aatype=np.arange(3))
    >>> read_features(path)["aatype"].tolist()
    [0, 1, 2]
    """
    path = as_path(path)
    readers: dict[str, Callable[[Path, bytes | None], dict[str, Any]]] = {
        ".pkl": _read_pickle,
        ".pickle": _read_pickle,
        ".npz": _read_npz,
        ".safetensors": _read_safetensors,
    }
    name = path.name.lower()
    kind = Path(name.removesuffix(".gz")).suffix
    if kind not in readers:
        raise DataError(f"{path} has none of the suffixes {', '.join(_KINDS)} (or with .gz).")
    if not path.is_file():
        raise DataError(f"{path} does not exist. Give a file of features.")
    MAX_BYTES.check(path.stat().st_size, path)
    packed = name.endswith(".gz")
    features = readers[kind](path, read_bytes(path, MAX_BYTES) if packed else None)
    if not features:
        raise DataError(f"{path} holds no features. Compute them again.")
    return features


def write_features(path: str | Path, features: Mapping[str, np.ndarray | torch.Tensor]) -> None:
    """Write numeric features as safetensors, atomically.

    Several runs may share a folder of such files: a reader sees a complete file or none.

    Parameters
    ----------
    path
        A name that ends in ``.safetensors``.
    features
        Name to array or tensor. Text is not a tensor and is refused.

    Raises
    ------
    DataError
        If the suffix is another one, or a value is not numeric.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "1a4w.safetensors"
    >>> write_features(path, {"aatype": np.arange(3)})
    >>> read_features(path)["aatype"].tolist()
    [0, 1, 2]
    """
    import torch

    path = as_path(path)
    if path.suffix != ".safetensors":
        raise DataError(f"Features are written as .safetensors, got {path}.")
    tensors = {}
    for name, value in features.items():
        try:
            # a copy also unties features that share memory, which safetensors refuses
            tensors[name] = torch.as_tensor(_native(value)).detach().clone()
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(
                f"Feature {name!r} is not numeric ({error}). Leave it out or encode it as numbers."
            ) from error
    save_safetensors(path, tensors)


def _native(value: Any) -> Any:
    """Return an array in the byte order of this machine, the only one torch takes."""
    is_array = isinstance(value, np.ndarray)
    return value.astype(value.dtype.newbyteorder("="), copy=False) if is_array else value


# npz and safetensors


def _read_safetensors(path: Path, raw: bytes | None) -> dict[str, Any]:
    try:
        return dict(load_safetensors(path)) if raw is None else _safetensors_of(path, raw)
    except CheckpointError as error:
        raise DataError(f"{error} Compute the features again.") from error


def _safetensors_of(path: Path, raw: bytes) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return dict(load(raw))
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged: {first_line(error)}") from error


def _read_npz(path: Path, raw: bytes | None) -> dict[str, Any]:
    source = path if raw is None else raw
    return dict(read_npz(source, path, MAX_BYTES, advice="Compute the features again."))


# Pickles


def _read_pickle(path: Path, raw: bytes | None) -> dict[str, Any]:
    raw = path.read_bytes() if raw is None else raw
    found = None if raw.startswith(b"PK") else foreign(raw, "pickle, npz or safetensors")
    if found is not None:
        raise DataError(f"{path} {found}")
    if raw.startswith(b"PK\x03\x04"):
        raise DataError(
            f"{path} is a file of torch.save or another zip, not a pickle. Load it with torch and "
            f"write it with molfun.data.write_features."
        )
    with _pickle_errors(path):
        _check_opcodes(raw)
        _BUDGET.left = MAX_BYTES.value
        content = _FeatureUnpickler(raw).load()
        if not isinstance(content, dict):
            raise DataError(
                f"{path} holds {_type_name(content)}, not a dict of features. Compute it again."
            )
        return {_key(name): _value(name, value) for name, value in content.items()}


@contextlib.contextmanager
def _pickle_errors(path: Path) -> Iterator[None]:
    """Name the file in every error; whatever else a crafted file provokes is damage."""
    try:
        yield
    except UnsafeFileError as error:
        raise UnsafeFileError(
            f"Refused {path}: {error} Nothing in it was run. Ask its author for npz or safetensors."
        ) from None
    except DataError as error:
        text = str(error)
        raise DataError(text if str(path) in text else f"{path}: {text}") from None
    except MolfunError:  # such as a limit that is set to no number
        raise
    except (RecursionError, MemoryError) as error:
        raise UnsafeFileError(
            f"Refused {path}: reading it exhausts {_resource(error)}. It is damaged or was made "
            f"to do harm; compute the features again."
        ) from None
    except Exception as error:  # damaged opcodes can make the unpickler fail in any way
        raise DataError(
            f"{path} is damaged or not a pickle ({type(error).__name__}: {first_line(error)}). "
            f"Compute the features again."
        ) from error


def _resource(error: BaseException) -> str:
    return "the stack" if isinstance(error, RecursionError) else "memory"


def _check_opcodes(raw: bytes) -> None:
    """Walk the instructions without running them.

    Python's unpickler grows its memo to the largest index that is asked for, 16 GiB for a file
    of ten bytes, so indices are held against the number of instructions.
    """
    largest_index = count = 0
    most = MAX_OPCODES.value
    for opcode, argument, _ in pickletools.genops(raw):
        count += 1
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            largest_index = max(largest_index, int(argument or 0))
        if count > most:
            raise UnsafeFileError(
                f"it has more than {most:,} instructions ({MAX_OPCODES.variable})."
            )
    if largest_index > count:
        raise UnsafeFileError(f"it asks for {largest_index:,} memo entries and makes {count:,}.")


class _Budget(threading.local):
    """Bytes that the pickle being read may still unpack to: its parts can refer to one another."""

    left = 0

    def spend(self, n_bytes: int) -> None:
        self.left -= n_bytes
        if self.left < 0:
            raise UnsafeFileError(
                f"it unpacks to more than {MAX_BYTES.value:,} bytes ({MAX_BYTES.variable})."
            )


_BUDGET = _Budget()


class _PickledType:
    """A numpy dtype on its way out of a pickle."""

    def __init__(self, code: str, _align: Any = False, _copy: Any = False) -> None:
        if not isinstance(code, str) or not (code == "O8" or _NUMERIC_TYPES.fullmatch(code)):
            raise DataError(f"array type {code!r} is not supported; use numbers or text.")
        self.code = code

    def __setstate__(self, state: Any) -> None:
        _version, order, subarray, names, fields, size, *_ = state
        if subarray is not None or names is not None or fields is not None:
            raise DataError("arrays of records are not supported; use one array for each field.")
        if self.code[0] in "SUV" and isinstance(size, int) and size >= 0:
            self.code = f"{self.code[0]}{size // 4 if self.code[0] == 'U' else size}"
        if order in ("<", ">"):
            self.code = order + self.code.lstrip("<>|=")

    @property
    def is_object(self) -> bool:
        return self.code == "O8"

    def build(self) -> np.dtype[Any]:
        return np.dtype(self.code)


class _PickledArray:
    """A numpy array on its way out of a pickle; its bytes decide its size, not its header."""

    def __init__(self) -> None:
        self._state: tuple[Any, ...] | None = None
        self._array: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, is_fortran, data = state
        self._state = (shape, _expect(dtype, _PickledType), bool(is_fortran), data)

    def build(self) -> np.ndarray:
        if self._state is None:
            raise DataError("an array has no content.")
        if self._array is None:
            shape, dtype, is_fortran, data = self._state
            order = "F" if is_fortran else "C"
            self._array = (
                _object_array(shape, data) if dtype.is_object else _array(data, dtype, shape, order)
            )
        return self._array


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise DataError(f"{_type_name(value)} stands where an array needs {kind.__name__}.")
    return value


def _shape(shape: Any) -> tuple[int, ...]:
    sizes = shape if isinstance(shape, tuple) else (shape,)
    if len(sizes) > 32 or not all(type(size) is int and size >= 0 for size in sizes):
        raise DataError(f"{str(shape)[:60]} is not the shape of an array.")
    return sizes


def _array(data: Any, dtype: _PickledType, shape: Any, order: str = "C") -> np.ndarray:
    if not isinstance(data, (bytes, bytearray)):
        raise DataError(f"an array has {_type_name(data)} for its content.")
    sizes, kind = _shape(shape), dtype.build()
    _BUDGET.spend(len(data))
    if math.prod(sizes) * kind.itemsize != len(data):
        raise UnsafeFileError(f"an array declares {sizes} values of {kind} in {len(data)} bytes.")
    flat = np.frombuffer(data, kind) if data else np.zeros(math.prod(sizes), kind)
    # a copy, so that the result can be written to
    return flat.reshape(sizes, order="F" if order == "F" else "C").copy(order="K")


def _object_array(shape: Any, data: Any) -> np.ndarray:
    """Make an object array of texts (openfold keeps sequences so)."""
    sizes = _shape(shape)
    if not isinstance(data, list) or len(data) != math.prod(sizes):
        raise UnsafeFileError(f"an array declares {sizes} objects and does not hold them.")
    array = np.empty(len(data), dtype=object)
    array[:] = [_plain(item) for item in data]
    return array.reshape(sizes)


def _plain(value: Any) -> Any:
    if not isinstance(value, (str, bytes, bool, int, float, type(None), np.generic)):
        raise DataError(f"{_type_name(value)} stands in an array or list; numbers and text can.")
    return value


def _reconstruct(cls: Any, _shape_of_empty: Any, _code: Any) -> _PickledArray:
    if cls is not _PickledArray:
        raise UnsafeFileError("it builds an array of an unknown class.")
    return _PickledArray()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any = "C") -> np.ndarray:
    return _array(data, _expect(dtype, _PickledType), shape, order)


def _scalar(dtype: Any, data: Any) -> Any:
    return _array(data, _expect(dtype, _PickledType), ())[()]


def _encode(text: Any, encoding: Any) -> bytes:
    if encoding != "latin1" or not isinstance(text, str):
        raise UnsafeFileError(f"it encodes text as {str(encoding)[:40]!r}.")
    _BUDGET.spend(len(text))
    return text.encode("latin1")


def _empty_bytes() -> bytes:
    """Return what protocol 2 writes for an empty text: a call of ``bytes`` without arguments."""
    return b""


def _load_storage(raw: Any) -> Any:
    """Read the storage of a tensor, by torch's reader that runs nothing.

    The original calls ``torch.load`` with ``weights_only=False``.
    """
    import torch

    if not isinstance(raw, bytes) or raw.startswith(b"PK"):
        raise UnsafeFileError("a tensor in it is packed in an unusual way.")
    try:
        with _quiet_storages():
            storage = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UnsafeFileError(
            f"a tensor in it holds more than numbers ({first_line(error)})."
        ) from None
    if not isinstance(storage, (torch.storage.TypedStorage, torch.UntypedStorage)):
        raise UnsafeFileError(f"a tensor in it holds {_type_name(storage)}.")
    return storage


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_ignored: Any) -> Any:
    """Make a tensor as a view on its storage, never reaching beyond it."""
    import torch

    _expect(storage, torch.storage.TypedStorage)
    sizes, steps = _shape(size), _shape(stride)
    last = offset + sum((n - 1) * step for n, step in zip(sizes, steps, strict=True))
    with _quiet_storages():
        held, count = len(storage), int(math.prod(sizes))
        if count > held or (count and not 0 <= offset <= last < held):
            raise UnsafeFileError(
                f"a tensor in it declares {sizes} values beyond its content ({held} values)."
            )
        flat = torch.tensor([], dtype=storage.dtype).set_(storage)
    return flat.as_strided(sizes, steps, offset)


@contextlib.contextmanager
def _quiet_storages() -> Iterator[None]:
    """Ignore torch's warning at every touch of the typed storages of pickled tensors."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
        yield


_NUMPY_CORE = ("numpy.core", "numpy._core")
ALLOWED: dict[tuple[str, str], Any] = {
    **{(f"{core}.multiarray", "_reconstruct"): _reconstruct for core in _NUMPY_CORE},
    **{(f"{core}.multiarray", "scalar"): _scalar for core in _NUMPY_CORE},
    **{(f"{core}.numeric", "_frombuffer"): _from_buffer for core in _NUMPY_CORE},
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledType,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _empty_bytes,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch.storage", "_load_from_bytes"): _load_storage,
}
"""Every name a pickle may use, and what is called instead of it."""


class _Call:
    """A function that a pickle may call and not change (BUILD would set its attributes)."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, _state: Any) -> None:
        raise UnsafeFileError("it tries to change a function.")


class _FeatureUnpickler(pickle.Unpickler):
    def __init__(self, raw: bytes) -> None:
        super().__init__(io.BytesIO(raw))

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise UnsafeFileError(f"it uses {module}.{name}, which could run code.")
        allowed = ALLOWED[module, name]
        return allowed if isinstance(allowed, type) else _Call(allowed)


def _key(name: Any) -> str:
    if not isinstance(name, str):
        raise DataError(f"its key {str(name)[:40]!r} is not text.")
    return name


def _value(name: str, value: Any) -> Any:
    """Make an array of whatever stands for one in a feature dict."""
    if isinstance(value, _PickledArray):
        return value.build()
    if isinstance(value, (list, tuple)):
        # numpy gives every text the room of the longest
        longest = max((len(i) for i in value if isinstance(i, (str, bytes))), default=2)
        _BUDGET.spend(4 * longest * len(value))
        return np.array([_plain(item) for item in value])
    if isinstance(value, (str, bytes, bool, int, float, np.generic, np.ndarray)):
        return np.asarray(value)
    if _is_tensor(value):
        return value
    raise DataError(f"feature {name!r} is {_type_name(value)}, not an array.")


def _is_tensor(value: Any) -> bool:
    return type(value).__module__ == "torch" and type(value).__name__ == "Tensor"


def _type_name(value: Any) -> str:
    name = type(value).__name__
    return f"an {name}" if name[0].lower() in "aeiou" else f"a {name}"
