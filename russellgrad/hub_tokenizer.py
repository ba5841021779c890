"""The tokenizers of folders of the Hugging Face hub: tokenizer.json, or vocab.json and merges.txt.

An encoding of characters is written as a `tokenizers` file that splits a text into its characters and looks them up.
Such a file is read as characters again, without the package `tokenizers`.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .bpe import BPE
from .byte_level import read_files
from .encoding import CharacterEncoding, Encoding, HubEncoding
from .tokenizer import Tokenizer

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
# Files that belong to one tokenizer, and that `transformers` reads with the others.
WITH_TOKENIZER = ("added_tokens.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json")
_VOCABULARY, _MERGES, _ADDED = "vocab.json", "merges.txt", "added_tokens.json"  # GPT-2's files
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_SPLIT = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}  # . has no newline
# The tokens that begin and end a text, in GPT-2 and in the versions of Llama.
_BEGIN = ("<|endoftext|>", "<s>", "<|begin_of_text|>")
_END = ("<|endoftext|>", "</s>", "<|end_of_text|>")


def read_json(path: Path, who: str) -> dict[str, Any]:
    """The content of a JSON file. Raises ValueError if it is not an object in JSON; `who` begins the message."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{who}: {path} is not JSON: {error}; download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{who}: {path} must contain a JSON object, got a {type(content).__name__}")
    return content


# --- Reading


def load_encoding(path: str | os.PathLike[str], vocab_size: int | None = None, who: str = "load_encoding") -> Encoding:
    """Read a tokenizer.json, or from a folder tokenizer.json or else GPT-2's vocab.json and merges.txt.

    Special tokens in a text, such as <|endoftext|>, are encoded as one token each. The result is a `HubEncoding`, or
    for files that the library wrote, without special tokens, a `CharacterEncoding` or `BPE`, which need no package.

        encoding = load_encoding("gpt2")  # a folder

    Args:
        path: a file or a folder.
        vocab_size: the number of tokens of the model, by default that of the tokenizer. The model may have more.
        who: the name at the start of error messages.

    Raises:
        FileNotFoundError: there is no such file, or the folder has no tokenizer.
        ValueError: a file is damaged, or has more tokens than `vocab_size`.
        ImportError: `tokenizers` is not installed, and the tokenizer is none of the library's own.
    """
    folder = file = Path(path)
    if not folder.is_dir() or (file := folder / TOKENIZER).is_file():
        if not file.is_file():
            raise FileNotFoundError(f"{who}: there is no file or folder {file}")
        content = read_json(file, who)
    elif (file := folder / _VOCABULARY).is_file() and (folder / _MERGES).is_file():
        content = _from_gpt2_files(folder, who)
    else:
        remedy = (
            "convert tokenizer.model with transformers, AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            if (folder / "tokenizer.model").is_file()
            else "give a folder that has them; `hf download` gets those of a model"
        )
        raise FileNotFoundError(f"{who}: {folder} has neither {TOKENIZER} nor {_VOCABULARY} and {_MERGES}; {remedy}")
    try:
        encoding = _own_encoding(content) or HubEncoding(json.dumps(content, ensure_ascii=False))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{who}: {file} is not a tokenizer: {error}") from error
    if file.name == _VOCABULARY and isinstance(encoding, HubEncoding):  # the package numbers added tokens itself
        for token in content["added_tokens"]:
            if (i := encoding.tokenizer.token_to_id(token["content"])) != token["id"]:
                raise ValueError(
                    f"{who}: {folder / _ADDED}: {token['content']!r} has id {token['id']}, but the next free id is "
                    f"{i}; save the tokenizer as tokenizer.json with transformers"
                )
    if vocab_size is None or encoding.vocab_size == vocab_size:
        return encoding
    if encoding.vocab_size > vocab_size:
        raise ValueError(
            f"{who}: {file} has {encoding.vocab_size} tokens, more than the vocab_size={vocab_size} of the model; use "
            "the tokenizer that the model was trained with"
        )
    return HubEncoding(json.dumps(content, ensure_ascii=False), vocab_size)


def _from_gpt2_files(folder: Path, who: str) -> dict[str, Any]:
    """The tokenizer.json that is equivalent to vocab.json, merges.txt and, if it is there, added_tokens.json."""
    added = read_json(folder / _ADDED, who) if (folder / _ADDED).is_file() else {}
    try:
        vocabulary, merges = read_files(folder)
        special = {token: i for token, i in vocabulary.items() if token == _END[0]}
        return _byte_level_bpe(vocabulary, merges, special | dict(sorted(added.items(), key=lambda item: int(item[1]))))
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{who}: {folder}: {_VOCABULARY} and {_MERGES} are not GPT-2's files: {error}") from error


def _own_encoding(content: dict[str, Any]) -> Encoding | None:
    """The encoding that this module wrote, also if `transformers` wrote it again; None for other tokenizers."""
    model, processor = content.get("model"), content.get("post_processor") or {}
    if not isinstance(model, dict) or content.get("added_tokens") or processor.get("special_tokens"):
        return None
    candidates: list[Encoding] = []
    if model.get("type") == "BPE" and content.get("pre_tokenizer") == _BYTE_LEVEL:
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        with suppress(ValueError):  # some bytes have no token
            candidates = [BPE(model["vocab"], [(left, right) for left, right in merges])]
    elif model.get("type") == "WordLevel" and max(map(len, model["vocab"]), default=0) == 1:
        vocabulary = "".join(sorted(model["vocab"], key=model["vocab"].__getitem__))
        candidates = [CharacterEncoding(vocabulary, strict) for strict in (True, False)]
    for encoding in candidates:
        own = _content(encoding)
        if all(content.get(key) == own[key] for key in ("normalizer", "pre_tokenizer", "decoder")) and all(
            model.get(key) == value for key, value in own["model"].items() if key != "merges"
        ):
            return encoding
    return None


# --- Writing


def tokenizer_files(tokenizer: Tokenizer, who: str) -> dict[str, dict[str, Any]]:
    """The files of a tokenizer, for `transformers`: the content of each, by its name, in the order to write them.

    Raises ValueError for an encoding that a tokenizer.json cannot describe.
    """
    try:
        content = _content(tokenizer.encoding)
    except (TypeError, UnicodeEncodeError) as error:
        raise ValueError(f"{who}: {TOKENIZER} cannot describe the tokenizer: {error}") from error
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": tokenizer.max_seq_len,
        "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    settings |= {f"{key}_token": name for key, (name, _) in special_tokens(tokenizer.encoding).items()}
    return {SETTINGS: settings, TOKENIZER: content}  # in this order, for `has_tokenizer`


def has_tokenizer(folder: Path, encoding: Encoding) -> bool:
    """Whether the folder has this tokenizer already: its settings, such as a chat template, are then to be kept.

    If writing was interrupted before, they are that tokenizer's, because tokenizer.json is written after them.
    """
    try:
        return _content(load_encoding(folder, encoding.vocab_size)) == _content(encoding)
    except (ImportError, OSError, ValueError):
        return False


def special_tokens(encoding: Encoding) -> dict[str, tuple[str, int]]:
    """The special tokens that begin and end a text, "bos" and "eos", if the encoding has them, with their ids."""
    if not isinstance(encoding, HubEncoding):
        return {}
    added = encoding.tokenizer.get_added_tokens_decoder()
    id_of = {str(token.content): i for i, token in added.items() if token.special}
    names = {key: [name for name in known if name in id_of] for key, known in (("bos", _BEGIN), ("eos", _END))}
    return {key: (found[0], id_of[found[0]]) for key, found in names.items() if found}


def _content(encoding: Encoding) -> dict[str, Any]:
    """The tokenizer.json of an encoding. Raises TypeError for an encoding of another class."""
    if isinstance(encoding, CharacterEncoding):
        return _characters(encoding)
    if isinstance(encoding, BPE):
        return _byte_level_bpe(encoding.vocab, [list(pair) for pair in encoding.merges], {})
    if isinstance(encoding, HubEncoding):
        content: dict[str, Any] = json.loads(encoding.config()["tokenizer"])
        return content
    raise TypeError(f"it has an encoding of the class {type(encoding).__name__}, not characters, BPE or HubEncoding")


def _characters(encoding: CharacterEncoding) -> dict[str, Any]:
    """The tokenizer.json of characters. An unknown character is an error, or is removed if the encoding is not strict.

    It has no token for unknown characters: that would be one more than the model has. Raises UnicodeEncodeError for a
    vocabulary with surrogates.
    """
    encoding.vocabulary.encode()
    known = "".join(f"\\x{{{ord(character):x}}}" for character in encoding.vocabulary)
    remove = {"type": "Replace", "pattern": {"Regex": f"[^{known}]"}, "content": ""}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": None if encoding.strict else remove, "pre_tokenizer": _SPLIT, "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": {character: i for i, character in enumerate(encoding.vocabulary)},
                  "unk_token": "<unknown>"},
    }  # fmt: skip


def _byte_level_bpe(vocabulary: Mapping[str, int], merges: list[Any], added: Mapping[str, int]) -> dict[str, Any]:
    """The tokenizer.json of GPT-2's byte-pair encoding, with these special tokens and their ids."""
    options = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i, "content": token, **options} for token, i in added.items()],
        "normalizer": None, "pre_tokenizer": _BYTE_LEVEL, "post_processor": None, "decoder": _BYTE_LEVEL,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": dict(vocabulary), "merges": merges},
    }  # fmt: skip
