"""Feature files: what is read, and that nothing in them is ever run."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import pickle
import struct
import sys
import warnings
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from molfun.data.feature_files import FEATURE_SUFFIXES, read_features, write_features
from molfun.data.folders import FolderIndex
from molfun.errors import DataError, MolfunError, UnsafeFileError

RAW = {
    "aatype": np.eye(21, dtype=np.float32)[:5],
    "msa": np.arange(35, dtype=np.int32).reshape(7, 5),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big_endian": np.arange(3, dtype=">i4"),
    "flags": np.array([True, False]),
    "half": np.ones((2, 0), np.float16),
    "scalar": np.float32(2.5),
    "zero_d": np.array(7),
    "letters": np.array(["ab", "c"]),
    "bytes": np.array([b"ab", b"c"]),
    "sequence": np.array([b"ACDEF"], dtype=object),
    "high_bytes": np.arange(250, 256, dtype=np.uint8),
}


def refused(path, error=UnsafeFileError) -> str:
    with pytest.raises(error) as caught:
        read_features(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def assert_same(left, right) -> None:
    assert left.keys() == right.keys()
    for name in left:
        expected = np.asarray(right[name])
        assert left[name].dtype == expected.dtype, name
        np.testing.assert_array_equal(left[name], expected)


# What is read


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_numpy_pickles_of_every_protocol(write, protocol):
    features = read_features(write("a.pkl", pickle.dumps(RAW, protocol)))
    assert_same(features, RAW)
    assert features["msa"].flags.writeable


def test_ordered_dict_and_plain_values(write):
    content = OrderedDict(n=3, names=["a", "b"], text="x", pair=(1.5, 2.5))
    features = read_features(write("a.pkl", pickle.dumps(content)))
    assert features["n"] == 3
    assert features["names"].tolist() == ["a", "b"]
    assert features["pair"].tolist() == [1.5, 2.5]


def test_one_array_under_two_names(write):
    array = np.arange(4)
    features = read_features(write("a.pkl", pickle.dumps({"a": array, "b": array})))
    assert features["a"].tolist() == features["b"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_tensors(write, protocol):
    base = torch.arange(24.0).reshape(2, 3, 4)
    content = {
        "plain": base,
        "view": base[:, 1:, ::2],
        "transposed": base.transpose(0, 2),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(3),
        "flags": torch.tensor([True, False]),
    }
    features = read_features(write("a.pkl", pickle.dumps(content, protocol)))
    assert features.keys() == content.keys()
    for name, tensor in content.items():
        assert features[name].dtype == tensor.dtype
        assert torch.equal(features[name], tensor), name


def test_npz_and_safetensors(tmp_path):
    arrays = {name: value for name, value in RAW.items() if name != "sequence"}
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez_compressed(tmp_path / "b.npz", **arrays)
    assert_same(read_features(tmp_path / "a.npz"), arrays)
    assert_same(read_features(tmp_path / "b.npz"), arrays)
    write_features(tmp_path / "c.safetensors", {"aatype": RAW["aatype"], "t": torch.ones(2).half()})
    features = read_features(tmp_path / "c.safetensors")
    assert torch.equal(features["aatype"], torch.from_numpy(RAW["aatype"]))
    assert features["t"].dtype == torch.float16


def test_write_features_shares_nothing_and_leaves_no_parts(tmp_path):
    base = torch.arange(6.0)
    path = tmp_path / "cache" / "a.safetensors"
    write_features(path, {"a": base, "b": base, "c": base.reshape(2, 3).T})
    assert torch.equal(read_features(path)["c"], base.reshape(2, 3).T)
    assert [file.name for file in path.parent.iterdir()] == ["a.safetensors"]


def test_write_features_refuses_text_and_other_suffixes(tmp_path):
    with pytest.raises(DataError, match=r"Feature 'sequence' is not numeric .* Leave it out"):
        write_features(tmp_path / "a.safetensors", {"sequence": RAW["sequence"]})
    with pytest.raises(DataError, match=r"are written as \.safetensors, got"):
        write_features(tmp_path / "a.pkl", {})
    assert not list(tmp_path.iterdir())


def test_features_of_openfold(real_data):
    path = real_data / "openfold" / "features.pkl"
    with path.open("rb") as file:
        assert_same(read_features(path), pickle.load(file))


def find_features(folder, sample_id):
    return FolderIndex(folder).find(sample_id, FEATURE_SUFFIXES)


def test_find_features(tmp_path):
    for name in ("1A4W.pkl", "1a4w.npz", "3htb.pickle"):
        (tmp_path / name).touch()
    assert find_features(tmp_path, "1a4w").name == "1a4w.npz"
    assert find_features(tmp_path, "3HTB").name == "3htb.pickle"
    assert find_features(tmp_path, "2xys") is None


# Attacks: each would create the canary if it ran


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def by_name(module: str, name: str, *arguments: str) -> bytes:
    """A pickle that calls a function by its name."""
    parts = b"".join(b"V" + a.encode("raw_unicode_escape") + b"\n" for a in arguments)
    return b"c" + f"{module}\n{name}\n".encode() + b"(" + parts + b"tR."


@pytest.fixture
def canary(tmp_path):
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "code in the file was run"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("subprocess", "check_output"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("builtins", "getattr"),
        ("numpy.testing._private.utils", "runstring"),
        ("numpy", "load"),
        ("numpy", "memmap"),
        ("numpy._core.multiarray", "fromfile"),
        ("torch", "load"),
        ("torch.hub", "load"),
        ("torch._utils", "_rebuild_tensor"),
        ("collections", "defaultdict"),
        ("_codecs", "decode"),
        ("molfun.data.feature_files", "_encode"),
    ],
)
def test_names_outside_the_list(write, canary, module, name):
    text = refused(write("a.pkl", by_name(module, name, f"touch {canary}")))
    assert f"it uses {module}.{name}, which could run code" in text
    assert "Nothing in it was run" in text


def test_os_system(write, canary):
    content = {"aatype": np.zeros(3), "x": Calls(os.system, f"touch {canary}")}
    assert "uses posix.system" in refused(write("a.pkl", pickle.dumps(content)))


def test_attributes_of_allowed_names(write, canary):
    raw = b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93."
    assert "it uses numpy.ndarray.tofile" in refused(write("a.pkl", raw))


@pytest.mark.parametrize("zipped", [True, False])
def test_attack_inside_a_tensor(write, canary, zipped):
    inner = io.BytesIO()
    torch.save(Calls(os.system, f"touch {canary}"), inner, _use_new_zipfile_serialization=zipped)
    outer = Calls(torch.storage._load_from_bytes, inner.getvalue())
    assert "a tensor in it" in refused(write("a.pkl", pickle.dumps({"x": outer})))


def test_attack_inside_numpy_testing(write, canary):
    code = f"open({str(canary)!r}, 'w')"
    raw = by_name("numpy.testing._private.utils", "runstring", code, "")
    assert "runstring" in refused(write("a.pkl", raw))


def test_encode_takes_no_other_codec(write, canary):
    raw = by_name("_codecs", "encode", "x", "rot13")
    assert "encodes text as 'rot13'" in refused(write("a.pkl", raw))


def array_pickle(shape: tuple[int, ...], data: object, code: str = "f8") -> bytes:
    """A pickle of an array whose header may lie."""
    dtype = np.dtype(code)
    state = (1, shape, dtype, False, data)
    reconstruct = np.zeros(1).__reduce__()[0]

    class Lying:
        def __reduce__(self):
            return reconstruct, (np.ndarray, (0,), b"b"), state

    return pickle.dumps({"x": Lying()}, protocol=2)


@pytest.mark.parametrize(
    ("shape", "data", "code"),
    [
        ((10**12,), b"", "f8"),
        ((10**6, 10**6, 10**6, 10**6), b"12345678", "f8"),
        ((3,), b"12345678", "f8"),
        ((10**11,), [], "O"),
    ],
)
def test_declared_sizes_are_held_against_content(write, shape, data, code):
    assert "an array declares" in refused(write("a.pkl", array_pickle(shape, data, code)))


def test_direct_allocation(write):
    raw = b"\x80\x02cnumpy\nndarray\n\x8a\x05\x00\xe8\x76\x48\x17\x85R."
    refused(write("a.pkl", raw), DataError)


def test_memo_bomb(write):
    raw = b"\x80\x02}r" + struct.pack("<I", 2**32 - 1) + b"."
    assert "asks for 4,294,967,295 memo entries" in refused(write("a.pkl", raw))


def test_declared_length_of_bytes(write):
    raw = b"\x80\x04\x8e" + struct.pack("<Q", 93 * 2**30) + b"abc."
    refused(write("a.pkl", raw), DataError)


def test_too_many_instructions(write, monkeypatch):
    monkeypatch.setenv("MOLFUN_MAX_PICKLE_INSTRUCTIONS", "1000")
    raw = pickle.dumps({"x": list(range(2000))})
    assert "more than 1,000 instructions" in refused(write("a.pkl", raw))


def test_deep_nesting(write):
    depth = 100_000
    assert read_fails(write("a.pkl", b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."))
    assert read_fails(write("b.pkl", b"\x80\x02" + b")" + b"\x85" * depth + b"."))
    inside = b"\x80\x02}X\x01\x00\x00\x00x" + b"]" * depth + b"a" * (depth - 1) + b"s."
    assert read_fails(write("c.pkl", inside))


def test_exponential_nesting(write):
    bomb: list = ["x"]
    for _ in range(60):
        bomb = [bomb] * 10
    assert read_fails(write("a.pkl", pickle.dumps({"x": bomb})))


def read_fails(path) -> bool:
    with pytest.raises(DataError) as caught:
        read_features(path)
    return str(path) in str(caught.value)


def test_tensor_beyond_its_storage(write):
    class Lying:
        def __reduce__(self):
            storage = torch.zeros(4).storage()
            return torch._utils._rebuild_tensor_v2, (
                storage, 0, (1000, 1000), (1000, 1), False, OrderedDict(),
            )  # fmt: skip

    with warnings.catch_warnings():
        # only making the attack uses torch's deprecated storage
        warnings.simplefilter("ignore")
        raw = pickle.dumps({"x": Lying()})
    assert "declares (1000, 1000) values beyond its content" in refused(write("a.pkl", raw))


def test_recursion_limit_is_left_alone(write):
    before = sys.getrecursionlimit()
    test_deep_nesting(write)
    assert sys.getrecursionlimit() == before


# Damage


@pytest.mark.parametrize("content", [b"", b"\x80", b"garbage", b"\x80\x04N.", b"(lp0\n."])
def test_not_a_pickle_of_features(write, content):
    refused(write("a.pkl", content), DataError)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1], "holds a list, not a dict of features"),
        ({}, "holds no features"),
        ({1: np.zeros(2)}, "its key '1' is not text"),
        ({"x": {"y": np.zeros(2)}}, "feature 'x' is a dict, not an array"),
        ({"x": [np.zeros(2)]}, "stands in an array or list; numbers and text can"),
        ({"x": np.zeros(2, "f4,i4")}, "arrays of records are not supported"),
    ],
)
def test_wrong_content(write, content, reason):
    assert reason in refused(write("a.pkl", pickle.dumps(content)), DataError)


@pytest.mark.parametrize("name", ["a.pkl", "a.npz", "a.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated(tmp_path, name, share):
    path, arrays = tmp_path / name, {"aatype": np.arange(500), "msa": np.ones((20, 30))}
    if name == "a.pkl":
        path.write_bytes(pickle.dumps(arrays))
    elif name == "a.npz":
        np.savez(path, **arrays)
    else:
        write_features(path, arrays)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])
    refused(path, DataError)


def test_objects_in_npz(tmp_path):
    np.savez(tmp_path / "a.npz", sequence=RAW["sequence"])
    text = refused(tmp_path / "a.npz")
    assert "sequence.npy holds Python objects" in text
    assert "np.array(text, dtype='S')" in text


def test_npz_bombs(tmp_path, monkeypatch):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)}
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue())
    assert "x.npy declares (1000000000000,) values" in refused(tmp_path / "a.npz")
    monkeypatch.setenv("MOLFUN_MAX_FEATURE_BYTES", "100_000")
    np.savez_compressed(tmp_path / "b.npz", x=np.zeros(10**5))
    assert "MOLFUN_MAX_FEATURE_BYTES=" in refused(tmp_path / "b.npz")


def test_oversized_file(write, monkeypatch):
    monkeypatch.setenv("MOLFUN_MAX_FEATURE_BYTES", "10")
    assert "more than the 10 allowed" in refused(write("a.pkl", pickle.dumps(RAW)))


def test_archive_of_torch_under_a_pickle_name(tmp_path):
    torch.save({"x": torch.ones(2)}, tmp_path / "a.pkl")
    assert "is a file of torch.save" in refused(tmp_path / "a.pkl", DataError)


def test_absent_and_unknown(tmp_path):
    assert "does not exist" in refused(tmp_path / "a.pkl", DataError)
    assert "has none of the suffixes" in refused(tmp_path / "a.txt", DataError)


PICKLE = pickle.dumps(RAW, protocol=4)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    flips=st.lists(st.tuples(st.integers(0, len(PICKLE) - 1), st.integers(0, 255)), max_size=8),
    length=st.integers(0, len(PICKLE)),
    whole=st.booleans(),
)
def test_any_damage_gives_features_or_an_error_of_ours(write, flips, length, whole):
    raw = bytearray(PICKLE)
    for place, value in flips:
        raw[place] = value
    with contextlib.suppress(MolfunError):
        read_features(write("fuzz.pkl", bytes(raw if whole else raw[:length])))


# Packed files


@pytest.mark.parametrize("name", ["a.pkl", "a.pickle", "a.npz", "a.safetensors", "A.PKL"])
def test_packed_files_give_the_same(tmp_path, write, name):
    arrays = {key: value for key, value in RAW.items() if value.dtype.kind in "iuf"}
    plain = tmp_path / name
    if name.endswith(".npz"):
        np.savez(plain, **arrays)
    elif name.endswith(".safetensors"):
        write_features(plain, arrays)
    else:
        plain.write_bytes(pickle.dumps(arrays))
    packed = write(f"packed/{name}.gz", gzip.compress(plain.read_bytes()))
    assert find_features(packed.parent, "a") == packed
    assert_same(
        {key: np.asarray(value) for key, value in read_features(packed).items()},
        {key: np.asarray(value) for key, value in read_features(plain).items()},
    )
    packed.write_bytes(packed.read_bytes()[:-9])
    assert "is truncated gzip" in refused(packed, DataError)
    packed.write_bytes(plain.read_bytes())
    assert "is not gzip or damaged" in refused(packed, DataError)


def test_packed_files_have_the_same_limit_and_guard(write, canary, monkeypatch):
    attack = gzip.compress(pickle.dumps({"x": Calls(os.system, f"touch {canary}")}))
    assert "uses posix.system" in refused(write("a.pkl.gz", attack))
    monkeypatch.setenv("MOLFUN_MAX_FEATURE_BYTES", "1M")
    bomb = write("b.npz.gz", gzip.compress(bytes(2**24)))
    assert "more than the 1,048,576 bytes allowed" in refused(bomb)


FOREIGN = {
    "a.pkl": (b"\x89HDF\r\n\x1a\n" + bytes(9), "is an HDF5 file"),
    "b.npz": (b"version https://git-lfs.github.com/spec/v1", "it is a Git LFS pointer"),
    "c.pkl": (gzip.compress(b"x"), "is packed with gzip"),
    "d.npz": (b"\x93NUMPY" + bytes(9), "it is a numpy array (.npy)"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_files_are_named(write, name):
    content, expected = FOREIGN[name]
    assert expected in refused(write(name, content), DataError)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((-1,), "<f8"), ((10**12,), "<f8"), ((10**12,), "|S0"), ((2**62,) * 3, "<i1")],
)
def test_headers_that_promise_more_than_there_is(tmp_path, shape, dtype):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(16))
    assert "x.npy declares" in refused(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "header",
    ["__import__('os').system('touch CANARY')", "(" * 9000, "{'descr': '<f8', 'shape': 1}", "1"],
)
def test_headers_are_not_evaluated(tmp_path, canary, header):
    text = header.replace("CANARY", str(canary)).encode()
    raw = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", raw)
    refused(tmp_path / "a.npz", DataError)


def test_one_name_twice_in_an_archive(tmp_path):
    array = io.BytesIO()
    np.save(array, np.arange(3))
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("x.npy", array.getvalue())
        archive.writestr("x.npy", array.getvalue())
    assert "holds 'x.npy' twice" in refused(tmp_path / "a.npz", DataError)


def _npz_and_safetensors() -> dict[str, bytes]:
    arrays = {"aatype": RAW["aatype"], "msa": RAW["msa"]}
    files = {"fuzz.pkl.gz": gzip.compress(PICKLE)}
    for name, save in (("fuzz.npz", np.savez), ("fuzz_packed.npz", np.savez_compressed)):
        content = io.BytesIO()
        save(content, **arrays)
        files[name] = content.getvalue()
    from safetensors.numpy import save as save_tensors

    return {**files, "fuzz.safetensors": save_tensors(arrays)}


FILES = _npz_and_safetensors()


@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.sampled_from(sorted(FILES)),
    flips=st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 255)), max_size=8),
    length=st.integers(0, 10**4),
    whole=st.booleans(),
)
def test_any_damage_of_other_kinds_gives_an_error_of_ours(write, name, flips, length, whole):
    raw = bytearray(FILES[name])
    for place, value in flips:
        raw[place % len(raw)] = value
    with contextlib.suppress(MolfunError):
        read_features(write(name, bytes(raw if whole else raw[:length])))
