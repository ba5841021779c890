"""The decoder: generation on arrays gives the logits of the full forward pass, and the texts of the key-value cache."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import russellgrad as rg
from russellgrad import Tensor, llama, russelltransformer
from russellgrad.backend import Backend, use_backend
from russellgrad.decoder import Decoder
from russellgrad.generation import KVCache, Sampling, generate
from russellgrad.layers import Identity
from russellgrad.module import Module, replaced_tensors
from russellgrad.russelltransformer import AttentionLayer, Block, FFLayer, LayerNorm, Transformer
from russellgrad.tokenizer import Tokenizer
from tests.core_backend import core_module
from tests.helpers import assert_close, once, rng
from tests.test_generation import PROMPTS, WINDOW, random_model
from tests.test_llama import OPTIONS, small_llama
from tests.test_llama import random_model as random_blocks
from tests.test_russelltransformer import TEXT, VARIANTS, small_model
from tests.torch_twin import randomise

ALL = [{"activation": name, "output_projection": projection, "final_norm": norm}
       for name in ("leaky_relu", "relu", "gelu", "gelu_tanh") for projection in (False, True)
       for norm in (False, True)] + [{"attention_bias": True, "output_projection": projection}
                                     for projection in (False, True)]  # fmt: skip


def decoder_of(model: Transformer) -> Decoder:
    made = model.make_decoder()
    assert type(made) is Decoder
    return made


class Cached(Transformer):
    """A subclass, which generates with `forward` and a KVCache."""


def with_cache(model: Transformer) -> Transformer:
    """A copy of the model that generates with a KVCache."""
    copy = Cached(model.tokenizer, **model.config())
    copy.load_state_dict(model.state_dict())
    return copy


def check_steps(model: Transformer, rows: list[list[int]], n_steps: int, ends: dict[int, list[int]]) -> None:
    """The logits of each step against `forward` of each text alone. `ends`: after which step which texts are kept."""
    decoder, draws = decoder_of(model), rng()
    rows = [list(row) for row in rows]
    modes = model.training
    for step in range(n_steps):
        model.train(modes)
        found = decoder.next_logits(rows)
        model.eval()
        for row, logits in zip(rows, found, strict=True):
            assert_close(np.array(logits), model([row[-WINDOW:]])[0, -1, :-1], what=f"step {step}")
            row.append(int(draws.integers(0, model.tokenizer.vocab_size)))
        if step in ends:
            decoder.select(ends[step])
            rows = [rows[i] for i in ends[step]]


# --- The logits


@pytest.mark.parametrize("options", ALL)
def test_logits_equal_those_of_the_full_forward(backend: Backend, options: dict[str, Any]) -> None:
    """Prompts of different lengths, one longer than the window, to beyond it; texts end, first the longest."""
    model = random_model(**options)
    rows = [model.tokenizer.encode(prompt) for prompt in [*PROMPTS, TEXT[:20]]]
    check_steps(model, rows, 17, {1: [0, 1, 2, 3], 4: [3, 1], 15: [1]})


@pytest.mark.parametrize(
    "lengths", [[1], [WINDOW], [WINDOW + 3], [1, 1], [5, 5], [WINDOW, WINDOW], [1, WINDOW], [3, 7]]
)
@pytest.mark.parametrize("options", VARIANTS[:2])
def test_logits_of_prompts_of_any_length(backend: Backend, options: dict[str, Any], lengths: list[int]) -> None:
    model = random_model(**options)
    rows = [rng(n).integers(0, model.tokenizer.vocab_size, n).tolist() for n in lengths]
    check_steps(model, rows, WINDOW + 2, {})


@pytest.mark.parametrize("options", OPTIONS)
def test_logits_of_todays_blocks_equal_those_of_the_full_forward(backend: Backend, options: dict[str, Any]) -> None:
    """Each option alone and Llama's together, prompts of different lengths, to beyond the context."""
    model = random_blocks(**options)
    rows = [model.tokenizer.encode(prompt) for prompt in [*PROMPTS, TEXT[:20]]]
    check_steps(model, rows, 17, {1: [0, 1, 2, 3], 4: [3, 1], 15: [1]})
    check_steps(model, rows[:1], WINDOW + 2, {})
    check_steps(model, [rows[3], rows[3][::-1]], WINDOW + 2, {2: [1, 0], 4: [1]})


@pytest.mark.parametrize("options", [{}, {"activation": "gelu"}, None])
def test_the_cache_grows(backend: Backend, options: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """From room for two tokens, also past the context; the memory is not that of max_seq_len from the start."""
    monkeypatch.setattr("russellgrad.decoder.FIRST_ROOM", 2)
    model = random_blocks(n_kv_heads=1) if options is None else random_model(**options)
    check_steps(model, [[1]], WINDOW + 3, {})
    check_steps(model, [[1], [2, 3], [1, 2, 3, 4]], WINDOW + 3, {2: [2, 0]})
    if hasattr(backend, "assign"):
        decoder, rooms, row = decoder_of(model), [], [1]
        for _ in range(WINDOW - 1):
            decoder.next_logits([row])
            rooms.append(decoder._cache[0].shape[3])
            row = [*row, 1]
        assert rooms[:5] == [2, 2, 4, 4, 8] and rooms[-1] == WINDOW


def test_dropout_is_off(backend: Backend) -> None:
    model = random_model(dropout=0.5).train()
    check_steps(model, [[1, 2, 3], [4]], 4, {})


def test_one_layer(backend: Backend) -> None:
    """The last layer, which computes only the last token of each row, is the first as well."""
    model = Transformer(Tokenizer.from_text(TEXT, WINDOW, 16, seed=0), 1, 2, seed=0)
    randomise(model)
    check_steps(model, [[1, 2, 3, 4], [5, 6]], WINDOW, {2: [1]})


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 2e-5), ("bfloat16", 0.05), ("float16", 0.02)])
@pytest.mark.parametrize("kind", ["gpt", "llama"])
def test_other_dtypes(backend: Backend, dtype: str, atol: float, kind: str) -> None:
    if dtype not in backend.float_dtypes():
        pytest.skip(f"{backend.name} has no {dtype}")
    model = small_model(activation="gelu", final_norm=True) if kind == "gpt" else small_llama(n_kv_heads=2, window=2)
    model.astype(dtype)
    decoder, rows = decoder_of(model), [[1, 2, 3], [4]]
    for _ in range(4):
        found = decoder.next_logits(rows)
        for row, logits in zip(rows, found, strict=True):
            expected = model([row])[0, -1, :-1].astype("float32").numpy()
            assert_close(np.array(logits, np.float32), expected, atol=atol)
            row.append(2)
    assert {str(backend.dtype(cached)) for cached in decoder._cache} == {dtype}


@once
def test_without_writing_in_place(backend: Backend) -> None:
    """A backend without `assign` joins the keys and values; the logits are the same."""
    with use_backend(core_module("decoder_core")):
        model = random_model(output_projection=True)
        assert not hasattr(model.tokenizer.token_embedding.backend, "assign")
        check_steps(model, [[1, 2, 3], [4], [5, 6]], WINDOW + 3, {1: [2, 0], 6: [1]})


# --- The texts


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0}, {"temperature": 2.0, "top_k": 3}, {"top_p": 0.8, "seed": 2**63}, {"stop": " "},
     {"stop": "at", "temperature": 0.5, "top_k": 5, "top_p": 0.9, "seed": 7}],
)  # fmt: skip
@pytest.mark.parametrize("prompts", [["the c"], PROMPTS, ["a", "t"], [TEXT]])
def test_texts_equal_those_of_the_key_value_cache(
    backend: Backend, prompts: list[str], options: dict[str, Any]
) -> None:
    model = small_model(activation="gelu")
    for parameter in model.parameters():
        parameter.data = backend.multiply(parameter.data, 8.0)  # far from uniform
    assert list(model.stream(prompts, 30, **options)) == list(with_cache(model).stream(prompts, 30, **options))


def test_a_change_of_the_parameters_between_two_pieces_is_seen(backend: Backend) -> None:
    texts = []
    for kind in (lambda model: model, with_cache):
        model = kind(random_model())
        pieces = []
        for i, piece in enumerate(model.stream("the", 20, seed=1)):
            pieces.append(piece)
            if i == 2:
                for parameter in model.parameters():
                    parameter.data = backend.multiply(parameter.data, -0.5)
            if i == 5:
                layer: Any = model.blocks[0].feed_forward
                layer.w_in = Tensor(layer.w_in.numpy() + 1.0)
        texts.append("".join(pieces))
    assert texts[0] == texts[1] != random_model().generate("the", 20, seed=1)[3:]


def test_a_model_that_is_cast_or_moved_in_the_middle_of_a_stream(backend: Backend) -> None:
    model = random_model()
    decoder, rows = decoder_of(model), [[1, 2, 3], [4]]
    changes = [lambda: model, lambda: model.astype("float32"), lambda: model.to("strict"), lambda: model]
    for change in changes:
        change()
        for row, logits in zip(rows, decoder.next_logits(rows), strict=True):
            expected = model([row])[0, -1, :-1].numpy()
            assert_close(np.array(logits, expected.dtype), expected)
            row.append(2)


def test_select_reorders(backend: Backend) -> None:
    model = random_model()
    decoder = decoder_of(model)
    decoder.next_logits([[1, 2, 3], [4]])
    decoder.select([1, 0])
    for logits, row in zip(decoder.next_logits([[4, 5], [1, 2, 3, 6]]), ([4, 5], [1, 2, 3, 6]), strict=True):
        assert_close(np.array(logits), model([row])[0, -1, :-1])


# --- The work


def test_only_new_tokens_are_computed_and_no_tensor_is_made(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    model, shapes, made, norm = small_model(), [], [], backend.layer_norm

    def watched(x: Any, *rest: Any) -> Any:
        shapes.append(x.shape[:2])
        return norm(x, *rest)

    monkeypatch.setattr(backend, "layer_norm", watched)
    monkeypatch.setattr(Tensor, "_wrap", lambda *args, **kwargs: made.append(args))
    model.generate(["the", "a"], WINDOW)
    n_before, one = len(PROMPTS[0][:3]), (2, 1)
    # Two norms in each of two layers. In the last layer, the second is of the last tokens only.
    first = [(2, n_before)] * 3 + [one]
    past = [(2, WINDOW)] * 3 + [one]
    assert shapes == first + [one] * 4 * (WINDOW - n_before) + past * 2
    assert not made


def test_keys_and_values_are_written_into_arrays_that_are_made_once(backend: Backend) -> None:
    if not hasattr(backend, "assign"):
        pytest.skip(f"{backend.name} has no assign")
    decoder = decoder_of(small_model())
    rows = [[1, 2], [3]]
    decoder.next_logits(rows)
    before = list(decoder._cache)
    for _ in range(4):
        rows = [[*row, 1] for row in rows]
        decoder.next_logits(rows)
    assert all(now is then for now, then in zip(decoder._cache, before, strict=True))


# --- Which models have one


class Louder(FFLayer):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 3.0


def replace_the_forward_of_a_layer(model: Transformer) -> None:
    layer: Any = model.blocks[1].feed_forward
    layer.forward = lambda x: FFLayer.forward(layer, x) * 3.0


def replace_a_layer(model: Transformer) -> None:
    louder = Louder(64, 16)
    louder.load_state_dict(model.blocks[1].feed_forward.state_dict())
    model.blocks[1].feed_forward = louder


def replace_the_embedding(model: Transformer) -> None:
    embed = model.tokenizer.embed
    model.tokenizer.embed = lambda ids, first=0: embed(ids, first) * 3.0  # type: ignore[method-assign]


def replace_a_norm(model: Transformer) -> None:
    model.blocks[0].attention_norm = Identity()  # type: ignore[assignment]


def replace_the_dropout(model: Transformer) -> None:
    model.dropout = Louder(16, 16)  # type: ignore[assignment]


class Wrapper:
    """Not a module: passes everything on, but its output is -3 times that of the module."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, *args: Any) -> Any:
        return self.module(*args) * -3.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


def replace_the_dropout_by_a_function(model: Transformer) -> None:
    model.dropout = lambda x: x * 3.0  # type: ignore[assignment]


def replace_the_dropout_of_a_block_by_a_function(model: Transformer) -> None:
    model.blocks[0].dropout = lambda x: x * -3.0  # type: ignore[assignment]


def replace_a_norm_by_a_function(model: Transformer) -> None:
    model.final_norm = lambda x: x * -3.0  # type: ignore[assignment]


def wrap_the_feed_forward(model: Transformer) -> None:
    model.blocks[0].feed_forward = Wrapper(model.blocks[0].feed_forward)  # type: ignore[assignment]


def wrap_the_attention(model: Transformer) -> None:
    model.blocks[0].attention = Wrapper(model.blocks[0].attention)  # type: ignore[assignment]


def wrap_a_block(model: Transformer) -> None:
    model.blocks[1] = Wrapper(model.blocks[1])  # type: ignore[call-overload]


def without_a_bias(model: Transformer) -> None:
    model.blocks[0].feed_forward.b_out = None  # type: ignore[union-attr]


def without_a_shift(model: Transformer) -> None:
    model.blocks[1].attention_norm.beta = None  # type: ignore[union-attr]


def without_blocks(model: Transformer) -> None:
    model.blocks = []


def another_activation(model: Transformer) -> None:
    layer: Any = model.blocks[0].feed_forward
    layer.activation = "negative"


@pytest.mark.parametrize(
    "change",
    [
        replace_the_forward_of_a_layer, replace_a_layer, replace_the_embedding, replace_a_norm, replace_the_dropout,
        replace_the_dropout_by_a_function, replace_the_dropout_of_a_block_by_a_function, replace_a_norm_by_a_function,
        wrap_the_feed_forward, wrap_the_attention, wrap_a_block, without_a_bias, without_a_shift, without_blocks,
        another_activation,
    ],
)  # fmt: skip
def test_a_changed_model_generates_with_its_forward(
    backend: Backend, change: Callable[[Transformer], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(russelltransformer._ACTIVATIONS, "negative", lambda x: -x)
    model, same = random_model(), random_model()
    decoder_of(model)
    change(model)
    assert model.make_decoder() is None
    text = model.generate("the", 12, temperature=0)
    ids = model.tokenizer.encode("the")
    for _ in range(12):
        ids.append(int(model([ids[-WINDOW:]])[0, -1, :-1].argmax()))
    assert text == model.tokenizer.decode(ids)
    assert not np.allclose(model(["the"]).numpy(), same(["the"]).numpy(), atol=1e-3)


@pytest.mark.parametrize("kind", ["gpt", "llama"])
def test_every_part_that_the_decoder_reads_is_checked(backend: Backend, kind: str) -> None:
    gpt: dict[str, Any] = {"activation": "gelu", "output_projection": True, "final_norm": True, "attention_bias": True}
    model = small_model(**gpt) if kind == "gpt" else small_llama(attention_bias=True, n_kv_heads=2)
    decoder_of(model)
    modules = {type(module): module for module in model.modules()}
    others = {
        "gpt": {llama.GroupedQueryAttention, llama.RMSNorm, llama.SwiGLU, llama.Rotary},
        "llama": {AttentionLayer, FFLayer, LayerNorm},
    }
    assert set(russelltransformer._READ) - set(modules) == others[kind]
    for cls, parts in russelltransformer._READ.items():
        for name in parts if cls in modules else ():
            kept = getattr(modules[cls], name)
            setattr(modules[cls], name, object())
            assert model.make_decoder() is None, f"{cls.__name__}.{name}"
            setattr(modules[cls], name, kept)
    decoder_of(model)


def test_a_method_replaced_in_a_class_is_used(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model()
    forward = Block.forward
    monkeypatch.setattr(Block, "forward", lambda *args: forward(*args) * 2.0)
    assert model.make_decoder() is None
    monkeypatch.undo()
    decoder_of(model)
    call = Module.__call__
    monkeypatch.setattr(Module, "__call__", lambda *args, **kwargs: call(*args, **kwargs))  # as a profiler does
    assert model.make_decoder() is None
    monkeypatch.undo()
    monkeypatch.setattr(FFLayer, "__call__", lambda *args: Module.__call__(*args), raising=False)
    assert model.make_decoder() is None
    monkeypatch.undo()
    decoder_of(model)


def test_parameters_of_several_dtypes_and_subclasses_have_none(backend: Backend) -> None:
    model = random_model()
    assert with_cache(model).make_decoder() is None
    model.blocks[0].attention_norm.astype("float32")
    assert model.make_decoder() is None
    assert len(model.generate("the", 3)) == 6
    model = random_model()
    model.blocks[0].to("numpy" if backend.name != "numpy" else "strict")
    assert model.make_decoder() is None


def test_the_eps_of_a_norm(backend: Backend) -> None:
    model = random_model()
    model.blocks[0].attention_norm.eps = 0.5
    check_steps(model, [[1, 2], [3]], 3, {})


def test_within_a_transform_there_is_none(backend: Backend) -> None:
    model = random_model()

    def inside(parameters: dict[str, Tensor]) -> Tensor:
        def call() -> Tensor:
            assert model.make_decoder() is None
            return model(["the"]).sum()

        with replaced_tensors(model, parameters):
            return call()

    rg.grad(inside)(dict(model.named_parameters()))
    decoder_of(model)


def test_more_layers_and_shared_parameters(backend: Backend) -> None:
    """A change that leaves the classes alone: the decoder reads the blocks and their parameters."""
    model = random_model()
    model.blocks.append(model.blocks[0])
    first: Any = model.blocks[0].feed_forward
    model.blocks[1].feed_forward.w_in = first.w_in  # type: ignore[union-attr]
    model.final_norm = LayerNorm(16)
    check_steps(model, [[1, 2], [3]], 6, {})


# --- Traces


def test_a_trace_sees_the_operations(backend: Backend) -> None:
    model = random_model()
    text = model.generate("the", 4)
    with rg.trace() as t:
        assert model.generate("the", 4) == text
    names = {node.name for node in t.nodes}
    assert {"embedding", "layer_norm", "attention", "linear"} <= names


def test_a_trace_around_some_pieces(backend: Backend) -> None:
    model = random_model()
    pieces, counts = model.stream("the", 16), []
    text = model.generate("the", 16)[3:]
    found = ""
    for inside in (False, True, True, False) * 4:
        if inside:
            with rg.trace() as t:
                found += next(pieces)
            counts.append(len(t.nodes))
        else:
            found += next(pieces)
    assert found == text
    assert len(counts) == 8 and min(counts) > 10


# --- The protocol


class Bigrams(Module):
    """A model of the user's own, with the interface `LanguageModel`: the logits depend on the last character only."""

    def __init__(self) -> None:
        self.tokenizer = Tokenizer.from_text("abc", 8, 4, seed=0)
        self.blocks: Sequence[Module] = []
        self.table = Tensor(10 * np.eye(4)[[1, 2, 0, 3]])
        self.decoder = Identity()  # a name that models use for layers

    def forward(self, batch: Any, cache: KVCache | None = None) -> Tensor:
        ids = self.tokenizer.ids(batch)
        if cache is not None:
            cache.allocate(ids.values.shape, None, ids.backend)
        return self.table[Tensor(ids.values, backend=ids.backend)]


class Counting(Bigrams):
    """Has a decoder of its own."""

    def make_decoder(self) -> "Counting":
        return self

    def next_logits(self, rows: list[list[int]]) -> list[list[float]]:
        return [[9.0 * (len(row) % 3 == i) for i in range(3)] for row in rows]

    def select(self, rows: list[int]) -> None:
        pass


def test_a_model_of_ones_own(backend: Backend) -> None:
    assert generate(Bigrams(), ["a", "b"], 12, Sampling(0)) == ["abcabcabcabca", "bcabcabcabcab"]
    assert generate(Counting(), ["a", "b"], 5, Sampling(0)) == ["abcabc", "bbcabc"]


# --- Sampling


def sorted_choices(sampling: Sampling, logits: Sequence[float]) -> list[int]:
    return sorted(range(len(logits)), key=logits.__getitem__, reverse=True)[: sampling.top_k]


@pytest.mark.parametrize("top_k", [None, 1, 2, 5, 50])
@pytest.mark.parametrize("temperature", [0, 0.7])
def test_the_order_of_choices_is_that_of_a_stable_sort(top_k: int | None, temperature: float) -> None:
    draws = random.Random(0)
    sampling = Sampling(temperature, top_k)
    for _ in range(50):
        logits = [float(draws.randrange(6)) for _ in range(20)]
        expected = sorted_choices(sampling, logits)
        assert sampling.choices(logits)[0] == (expected if temperature else expected[:1])
