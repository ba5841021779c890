"""A trained model as a page: `python train/explore.py runs/shakespeare` writes `explore.html` to that folder.

The page is one file that needs no network. It has the weights of the model, and computes in the browser: probabilities
of the next character, text, attention weights, norms of the residual stream. docs/explore.md describes it. RG_BACKEND
selects the backend that computes the first text, if the run has no sample.
"""

import argparse
import base64
import html
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

if __name__ == "__main__" and not getattr(__spec__, "parent", None):  # run as a file: run the module instead
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    runpy.run_module("russellgrad.train.explore", run_name="__main__")
    sys.exit()

from russellgrad import get_backend
from russellgrad.bpe import BPE
from russellgrad.checkpoint import load_model
from russellgrad.encoding import CharacterEncoding, Encoding
from russellgrad.russelltransformer import Transformer
from russellgrad.serialization import replace_file

from .data import check_prompt
from .generate import model_file
from .metrics import FILE, read_metrics
from .page import content_policy, facts_list, json_for_script, read_asset
from .progress import command_line, echo, exit_on_error, option
from .report import default_prompt

PAGE = "explore.html"
DTYPES = ("float32", "float16")
_OPTIONS = {  # of Transformer that model.js knows, and dropout
    "n_layers", "n_attn_heads", "ff_scale_factor", "activation", "output_projection", "final_norm", "attention_bias",
    "dropout", "attention_dropout", "norm_eps", "ff_dim",
}  # fmt: skip
MAX_BYTES = 2**28  # of the weights: browsers cannot hold base64 of much more in one string


def write_page(
    path: str | os.PathLike[str],
    prompt: str | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    dtype: str = "float32",
) -> Path:
    """Write a page with the model in it, and return the page's path. An existing file is replaced atomically.

    Args:
        path: a model file, or the folder of a run or of a checkpoint.
        prompt: the text that the page shows first; by default the start of the run's last sample.
        output: the path of the page; by default explore.html in the model's folder.
        dtype: "float32", or "float16" for a page of half the size. Its weights are rounded, and so are its logits.

    Raises:
        FileNotFoundError: there is no such model; names the model of an earlier run, or the command that trains one.
        ValueError: the model's file is damaged; its tokens are those of a tokenizer.json; the model is of another run
            than the samples in its folder; the prompt is empty or has characters that are not in its vocabulary; the
            model has options of `Transformer` other than GPT-2's, such as `norm="rms_norm"`; a weight is not finite in
            this dtype; or the weights need more than 256 MiB.
        TypeError: `prompt` is not a str. ImportError: `safetensors` is not installed.
        OSError: the page cannot be written.
    """
    if dtype not in DTYPES:
        raise ValueError(f"{option('dtype')}: unknown dtype {dtype!r}; a page has {' or '.join(DTYPES)}")
    if prompt is not None and not isinstance(prompt, str):
        raise TypeError(f"prompt: needs a str, got a {type(prompt).__name__}")
    file = model_file(Path(path))
    model = load_model(file)
    if prompt is None:
        metrics = file.with_name(FILE)
        prompt = default_prompt(model, read_metrics(metrics).samples if metrics.exists() else (), file)
    if not isinstance(model.tokenizer.encoding, (CharacterEncoding, BPE)):
        raise ValueError(
            f"{file}: the page has characters and GPT-2's byte-pair encoding, and the model's tokens are those of "
            f"{type(model.tokenizer.encoding).__name__}; report.py shows its attention"
        )
    check_prompt(prompt, model.tokenizer)
    if not model.tokenizer.encode(prompt):
        raise ValueError(f"{option('prompt')}: it has no character of the model's vocabulary; give at least one")
    page = file.with_name(PAGE) if output is None else Path(output)
    text = page_html(file.resolve().parent.name, model, prompt, dtype)
    try:
        replace_file(page, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise OSError(
            f"cannot write {page}: {error.strerror or error}; {option('output')} writes the page to another file"
        ) from error
    return page


def page_html(name: str, model: Transformer, prompt: str, dtype: str) -> str:
    """The page. Raises ValueError as `write_page` for the weights."""
    tokenizer, options = model.tokenizer, model.config()
    if other := sorted(set(options) - _OPTIONS):
        raise ValueError(f"the page computes GPT-2's blocks, the model has other options: {', '.join(other)}")
    encoding, weights = tokenizer.encoding, _page_weights(model, dtype)
    unit = "character" if isinstance(encoding, CharacterEncoding) else "token"
    script, model_script = read_asset("explore.js"), read_asset("model.js")
    config = {
        **{key: options[key] for key in ("n_layers", "n_attn_heads", "activation")},
        "embed_dim": tokenizer.embed_dim,
        "max_seq_len": tokenizer.max_seq_len,
        "eps": model.blocks[0].attention_norm.eps,
        **_page_encoding(encoding),
        "unit": unit,
        "prompt": prompt,
        "dtype": dtype,
        "parameters": [{"name": key, "shape": array.shape} for key, array in weights.items()],
    }
    facts = [
        ("parameters", f"{sum(array.size for array in weights.values()):,}"),
        ("layers", str(options["n_layers"])),
        ("heads", str(options["n_attn_heads"])),
        ("width", str(tokenizer.embed_dim)),
        ("context", f"{tokenizer.max_seq_len} {unit}s"),
        ("vocabulary", f"{tokenizer.vocab_size} {unit}s"),
        ("activation", options["activation"]),
        ("weights", dtype),
    ]
    return Template(read_asset("explore.html")).substitute(
        title=html.escape(f"Model: {name}"),
        policy=content_policy(model_script, script),
        style=read_asset("explore.css"),
        facts=facts_list(facts),
        vocab_size=tokenizer.vocab_size,
        unit=unit,
        Unit=unit.capitalize(),
        config=json_for_script(config),
        weights=base64.b64encode(b"".join(array.tobytes() for array in weights.values())).decode(),
        model=model_script,
        script=script,
    )


def _page_encoding(encoding: Encoding) -> dict[str, Any]:
    """The entries of the encoding for model.js: the text of each token, and what byte-pair encoding needs."""
    if isinstance(encoding, CharacterEncoding):
        return {"vocabulary": encoding.vocabulary, "strict": encoding.strict}
    assert isinstance(encoding, BPE)
    tokens = sorted(encoding.vocab, key=encoding.vocab.__getitem__)
    labels = [encoding.decode([i]) for i in range(encoding.vocab_size)]
    return {"vocabulary": labels, "strict": True, "bpe": {"tokens": tokens, "merges": encoding.merges}}


def _page_weights(model: Transformer, dtype: str) -> dict[str, Any]:
    """The parameters, as little-endian arrays of this dtype. Matrices w_... are transposed, as in model.js."""
    target = np.dtype(dtype).newbyteorder("<")
    weights = {}
    for name, array in model.state_dict().items():
        with np.errstate(over="ignore"):  # reported here
            cast = np.asarray(array).astype(target)
        if not np.isfinite(cast).all():
            remedy = f"; use {option('dtype')} float32" if dtype == "float16" and np.isfinite(array).all() else ""
            raise ValueError(f"the parameter {name} has values that are not finite in {dtype}{remedy}")
        weights[name] = np.ascontiguousarray(cast.T if name.rpartition(".")[2].startswith("w_") else cast)
    if (size := sum(array.nbytes for array in weights.values())) > MAX_BYTES:
        remedy = f"; use {option('dtype')} float16" if dtype == "float32" and size <= 2 * MAX_BYTES else ""
        raise ValueError(f"the weights need {size / 2**20:,.0f} MiB, a page holds {MAX_BYTES // 2**20}{remedy}")
    return weights


# --- The command line


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write a page that runs a trained model in the browser.")
    parser.add_argument("model", help="a run's folder, or a model.safetensors file")
    parser.add_argument("--prompt", help="the text shown first (default: the start of the run's last sample)")
    parser.add_argument("--output", help=f"the page's file (default: {PAGE} in the model's folder)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="float16 halves the page (default: float32)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    options = parse()
    with exit_on_error(ValueError, ImportError, RuntimeError, TypeError):
        get_backend()
    with command_line(), exit_on_error(ValueError, ImportError, OSError):
        echo(str(write_page(options.model, options.prompt, output=options.output, dtype=options.dtype)))
