"""The embedded model's tokenizer: one token a byte, and the markers of a reasoning model."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

END, PAD = "<end>", "<pad>"
CONTEXT = 16_384  # the most tokens of prompt and completion of the embedded model


def byte_tokenizer() -> Tokenizer:
    """Any text has ids, and none is unknown."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (PAD, END)])
    # As in Qwen3, the thinking marks are tokens of their own that decoding keeps.
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ("<think>", "</think>")])
    return tokenizer
