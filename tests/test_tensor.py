"""Creating Tensors and converting them: dtypes, copies, numbers, repr, other libraries."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.dlpack

import russellgrad as rg
from russellgrad import Tensor, attention, cross_entropy, layer_norm, set_default_dtype
from russellgrad.backend import Backend
from tests.helpers import assert_close, is_torch
from tests.process import run_python


@pytest.fixture
def default_float32() -> Iterator[None]:
    rg.set_default_dtype("float32")
    yield
    rg.set_default_dtype("float64")


# --- Creation


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (1, "float64"),
        (2.5, "float64"),
        ([1, 2], "float64"),
        ([[1, 2.5], [3, 4]], "float64"),
        ((1, 2), "float64"),
        ([], "float64"),
        (range(3), "float64"),
        (True, "bool"),
        ([True, False], "bool"),
        ([[True], [False]], "bool"),
        ([True, 2], "float64"),
        ([np.float32(1.0), 2.0], "float64"),
        (np.float32(1.0), "float32"),
        (np.int64(3), "int64"),
        (np.array([1, 2]), "int64"),
        (np.array([1, 2], np.int8), "int8"),
        (np.array([1.0], np.float32), "float32"),
        (np.array([1.0], np.float16), "float16"),
        (np.array([True]), "bool"),
        (np.array(2.5), "float64"),
    ],
)
def test_numbers_get_the_default_dtype_and_arrays_keep_theirs(backend: Backend, data: Any, dtype: str) -> None:
    x = Tensor(data)
    assert x.dtype == dtype
    assert x.requires_grad is (np.dtype(dtype).kind == "f")
    assert backend.is_array(x.data)
    assert_close(x, np.asarray(data, dtype))


def test_default_dtype_applies_to_python_numbers(backend: Backend, default_float32: None) -> None:
    assert rg.get_default_dtype() == "float32"
    assert Tensor([1, 2]).dtype == np.float32
    assert Tensor(2.5).dtype == np.float32
    assert Tensor([True]).dtype == np.bool_
    assert Tensor(np.array([1.0])).dtype == np.float64
    assert (Tensor([1.0]) * 2.5 + 1).dtype == np.float32


@pytest.mark.parametrize("dtype", ["float32", np.float32, np.dtype("float32")])
def test_default_dtype_accepts_names_and_dtype_objects(dtype: Any) -> None:
    try:
        rg.set_default_dtype(dtype)
        assert rg.get_default_dtype() == "float32"
    finally:
        rg.set_default_dtype("float64")


@pytest.mark.parametrize("wrong", ["float16", "int64", int, float, np.int32, None])
def test_invalid_default_dtype_raises(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"^set_default_dtype: the default dtype must be one of float32, float64"):
        rg.set_default_dtype(wrong)
    assert rg.get_default_dtype() == "float64"


@pytest.mark.parametrize(
    ("setting", "expected"), [("float32", "float32"), ("", "float64"), ("float99", "RG_DTYPE: the default")]
)
def test_environment_sets_the_default_dtype(setting: str, expected: str) -> None:
    code = "from russellgrad import Tensor; print(Tensor([1]).dtype)"
    done = run_python("-c", code, RG_DTYPE=setting)
    assert expected in done.stdout + done.stderr


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", np.float32, np.dtype("int8")])
def test_explicit_dtype_is_used(backend: Backend, dtype: Any) -> None:
    for data in ([1, 0, 1], np.array([1, 0, 1]), [1.0, 0.0, 1.0]):
        assert_close(Tensor(data, dtype=dtype), np.array([1, 0, 1], dtype))


def test_data_is_copied(backend: Backend) -> None:
    host = np.array([1.0, 2.0])
    x = Tensor(host)
    host[0] = 100.0
    own = x.data
    y = Tensor(own)
    y.data *= 10.0
    assert_close(x, np.array([1.0, 2.0]))
    z = Tensor(own, dtype=x.dtype)
    assert z.data is not own


def test_copied_data_is_c_contiguous(backend: Backend) -> None:
    x = Tensor(np.arange(6.0).reshape(2, 3).T)
    assert x.data.is_contiguous() if is_torch(backend) else x.data.flags.c_contiguous
    assert_close(x, np.ascontiguousarray(np.arange(6.0).reshape(2, 3).T))


@pytest.mark.parametrize(
    "wrong", [None, "1", ["1", "2"], [1, None], 1j, np.array([1j]), object(), {}, {1.0}, np.array(["a"]), [[1], ["b"]]]
)
@pytest.mark.parametrize("dtype", [None, "float64"])
def test_non_numeric_data_raises(backend: Backend, wrong: Any, dtype: str | None) -> None:
    """With dtype float64, NumPy would read "1" as 1.0 and None as nan, and drop imaginary parts."""
    with pytest.raises(TypeError, match=r"^Tensor: "):
        Tensor(wrong, dtype=dtype)


def test_unsupported_dtype_raises_with_the_supported_ones(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    floats = ", ".join(backend.float_dtypes())
    message = (
        rf"^Tensor: cannot make an array of dtype %s on backend '{backend.name}' \(.*\); its float dtypes are {floats}$"
    )
    with pytest.raises(TypeError, match=message % "float31"):
        Tensor([1.0], dtype="float31")
    if "bfloat16" not in backend.float_dtypes():
        monkeypatch.setattr("russellgrad.dtype._default", "bfloat16")
        with pytest.raises(TypeError, match=message % "bfloat16"):
            Tensor([1.0])


def test_item_assignment_raises_with_the_remedy(backend: Backend) -> None:
    x = Tensor([1.0, 2.0])
    with pytest.raises(
        TypeError,
        match=r"^setitem: .*x\.at\(index\)\.set\(value\) or where\(mask, value, x\), or write into x\.data and call",
    ):
        x[0] = 1.0
    assert x.numpy().tolist() == [1.0, 2.0]


def test_array_of_another_library_raises_with_the_remedy(backend: Backend) -> None:
    if is_torch(backend):
        pytest.skip("a torch.Tensor is an array of this backend")
    with pytest.raises(TypeError, match=f"cannot take a torch.Tensor with a tensor of backend '{backend.name}'; pass"):
        Tensor([1.0]) + torch.ones(1)


def test_ragged_lists_raise(backend: Backend) -> None:
    with pytest.raises(ValueError, match=r"^Tensor: the nested lists have different lengths; make them equally long$"):
        Tensor([[1.0, 2.0], [3.0]])


def test_tensors_and_lists_of_tensors_raise(backend: Backend) -> None:
    x = Tensor([1.0])
    with pytest.raises(TypeError, match=r"^Tensor: data is a Tensor already; use .detach\(\), .astype\(\) or .to\(\)"):
        Tensor(x)
    for tensors in ([x, x], [Tensor(1.0), Tensor(2.0)], [[x], [x]]):
        with pytest.raises(TypeError, match=r"call \.numpy\(\), or Tensor\.stack for a list"):
            Tensor(tensors)


def test_backend_is_given_by_name_or_module(backend: Backend) -> None:
    for choice in (backend.name, backend, None):
        assert Tensor([1.0], backend=choice).backend is backend
    with pytest.raises(ValueError, match=r"^unknown backend 'nonsense'"):
        Tensor([1.0], backend="nonsense")
    with pytest.raises(TypeError, match=r"^backend must be a name or a module, got int"):
        Tensor([1.0], backend=3)  # type: ignore[arg-type]


# --- Attributes and conversion


def test_attributes(backend: Backend) -> None:
    x = Tensor([[1.0, 2.0, 3.0]], label="weights")
    assert (x.shape, x.ndim, x.size, x.label, len(x), x.is_leaf) == ((1, 3), 2, 3, "weights", 1, True)
    assert not (x * 2.0).is_leaf
    x.label = "other"
    assert x.label == "other"
    with pytest.raises(AttributeError):
        x.lable = "misspelt"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("data", "item"), [(2.5, 2.5), ([[2.5]], 2.5), (np.array([3]), 3), (True, True), (np.float32(0.5), 0.5)]
)
def test_item_and_number_conversions(backend: Backend, data: Any, item: Any) -> None:
    found = Tensor(data).item()
    assert found == item
    assert type(found) is type(item)
    assert float(Tensor(data)) == float(item)
    assert int(Tensor(data)) == int(item)
    assert bool(Tensor(data)) is bool(item)


def test_bool_of_zero_and_false(backend: Backend) -> None:
    assert not Tensor(0.0)
    assert not Tensor([False])


@pytest.mark.parametrize("convert", [Tensor.item, float, int])
@pytest.mark.parametrize("data", [[1.0, 2.0], np.zeros((0, 2))])
def test_number_conversion_of_several_elements_raises(backend: Backend, convert: Any, data: Any) -> None:
    x = Tensor(data)
    with pytest.raises(
        ValueError,
        match=rf"^{convert.__name__}: a tensor of shape \({x.shape[0]}.*\) has {x.size} elements, not one; reduce it",
    ):
        convert(x)
    with pytest.raises(
        ValueError, match=rf"^bool: the truth value of a tensor of shape \({x.shape[0]}.*is ambiguous; "
    ):
        bool(x > 0)


def test_len_and_iter_of_0d_tensors_raise(backend: Backend) -> None:
    with pytest.raises(TypeError, match=r"^len: a 0-d tensor has no length"):
        len(Tensor(1.0))
    with pytest.raises(TypeError, match=r"^iter: a 0-d tensor cannot be iterated over"):
        iter(Tensor(1.0))


def test_numpy_returns_a_host_copy(backend: Backend) -> None:
    x = Tensor([1.0, 2.0])
    out = x.numpy()
    assert type(out) is np.ndarray
    out[0] = 100.0
    assert_close(x, np.array([1.0, 2.0]))
    assert Tensor(2.0).numpy().shape == ()


def test_equality_is_elementwise_and_hash_is_by_identity(backend: Backend) -> None:
    x, y = Tensor([1.0, 2.0]), Tensor([1.0, 2.0])
    assert_close(x == y, np.array([True, True]))
    assert hash(x) != hash(y)
    assert {x: "a", y: "b"}[x] == "a"
    assert len({x, y, x}) == 2


def test_repr(backend: Backend) -> None:
    name = backend.name
    assert repr(Tensor([1.0, 2.0])) == f"Tensor([1. 2.], dtype=float64, backend={name}, requires_grad=True)"
    assert repr(Tensor([1.0], label="w") * 2) == f"Tensor([2.], dtype=float64, backend={name}, op=multiply)"
    assert repr(Tensor([True], label="mask")) == f"Tensor([ True], dtype=bool, backend={name}, label='mask')"
    assert repr(Tensor([[1.0], [2.0]], requires_grad=False)) == (
        f"Tensor([[1.]\n        [2.]], dtype=float64, backend={name})"
    )
    y = Tensor(np.float32(0)).exp()
    y.label = "out"
    assert repr(y) == f"Tensor(1.0, dtype=float32, backend={name}, op=exp, label='out')"


def test_implicit_conversion_to_an_array_raises(backend: Backend) -> None:
    for convert in (np.asarray, np.array, lambda x: np.asarray([x, x]), lambda x: np.concatenate([x, x])):
        with pytest.raises(
            TypeError, match=r"is not converted to an array implicitly; call .numpy\(\)|__array_ufunc__=None"
        ):
            convert(Tensor([1.0, 2.0]))
    with pytest.raises(TypeError, match="__array_ufunc__"):
        np.exp(Tensor([1.0]))


# --- DLPack


def test_dlpack_within_the_backend_shares_memory(backend: Backend) -> None:
    x = Tensor([1.0, 2.0], requires_grad=False)
    y = Tensor.from_dlpack(x)
    assert (y.backend, y.requires_grad) == (backend, True)
    assert_close(y, np.array([1.0, 2.0]))
    x.data[0] = 5.0
    assert_close(y, np.array([5.0, 2.0]))
    assert not Tensor.from_dlpack(x, requires_grad=False).requires_grad
    assert not Tensor.from_dlpack(Tensor(np.array([1, 2]))).requires_grad


def test_dlpack_export_of_a_tensor_with_gradients_raises(backend: Backend) -> None:
    with pytest.raises(
        BufferError, match=r"^__dlpack__: this tensor tracks gradients, which would be lost; export .detach"
    ):
        Tensor.from_dlpack(Tensor([1.0]))
    assert_close(Tensor.from_dlpack(Tensor([1.0]).detach()), np.array([1.0]))


def test_dlpack_shares_memory_with_pytorch(backend: Backend) -> None:
    if backend.name == "cupy":
        pytest.skip("CuPy arrays are on a device, this PyTorch has only host memory")
    x = Tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=False)
    theirs = torch.utils.dlpack.from_dlpack(x)
    x.data[0, 0] = 10.0
    assert theirs.tolist() == [[10.0, 2.0], [3.0, 4.0]]
    back = Tensor.from_dlpack(theirs.T)  # strides are kept
    theirs[0, 1] = 20.0
    assert_close(back, np.array([[10.0, 3.0], [20.0, 4.0]]))
    (back * back).sum().backward()
    assert_close(back.grad, np.array([[20.0, 6.0], [40.0, 8.0]]))


def test_numpy_scalars_as_parameters_do_not_widen_float32(backend: Backend) -> None:
    x = Tensor(np.ones((2, 3), "float32"))
    assert str(x.leaky_relu(np.float64(0.1)).dtype) == "float32"
    assert str(layer_norm(x, eps=np.float64(1e-5)).dtype) == "float32"
    assert str(Tensor(np.arange(3)).softmax().dtype) == "float64"


def test_fused_ops_of_integers_follow_the_default_dtype(backend: Backend) -> None:
    set_default_dtype("float32")
    try:
        x = Tensor(np.arange(6).reshape(2, 3))
        assert {str(t.dtype) for t in (layer_norm(x), attention(x, x, x), cross_entropy(x, [0, 1]))} == {"float32"}
    finally:
        set_default_dtype("float64")


def test_number_out_of_range_for_an_integer_tensor_raises(backend: Backend) -> None:
    with pytest.raises(OverflowError, match=r"^add: \(1,\) and 300"):
        Tensor(np.array([1], "uint8")) + 300


def test_cast_to_complex_raises(backend: Backend) -> None:
    with pytest.raises(TypeError, match="astype: a tensor holds real numbers or bools, not complex64"):
        Tensor([1.0]).astype("complex64")
