"""The default vocabulary: newline and the printable ASCII characters, which cover Tiny Shakespeare's 65."""

vocabulary: str = "\n" + "".join(chr(code) for code in range(ord(" "), ord("~") + 1))
vocabulary_map: dict[str, int] = {character: i for i, character in enumerate(vocabulary)}
n_words: int = len(vocabulary)
pad_token_id: int = n_words  # the id after those of the characters
