"""Text to token ids: a byte-level BPE with ChatML's special tokens, trained here or taken from a released model.

Control tokens are looked up by name and never parsed out of user text: a caption that contains `<|im_end|>` stays text,
whatever the tokenizer's file says (`blip3o.data.text.control_tokens`).
"""

import functools
from collections.abc import Iterable
from typing import Self

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from blip3o.data.text.control_tokens import control_tokens, text_encoder
from blip3o.errors import ConfigError, one_line
from blip3o.storage.magic import SNIFFED_BYTES, recognise

PAD = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
VISION_START = "<|vision_start|>"
VISION_END = "<|vision_end|>"
IMAGE_PAD = "<|image_pad|>"
GENERATE = "[IMG]"
CACHED_TEXTS = 8192
SPECIAL_TOKENS = (PAD, TURN_START, TURN_END, VISION_START, VISION_END, IMAGE_PAD, GENERATE)
# What Llama 3 has in place of ChatML's tokens.
LLAMA_NAMES = {PAD: "<|finetune_right_pad_id|>", TURN_START: "<|start_header_id|>", TURN_END: "<|eot_id|>"}
# Tokens that frames of other families are made of (`blip3o.data.text.templates`).
FAMILY_TOKENS = (*LLAMA_NAMES.values(), "<|begin_of_text|>", "<|end_header_id|>", "<think>", "</think>")


class ChatTokenizer:
    """A byte-level BPE tokenizer that has all of `SPECIAL_TOKENS`, or Llama 3's own in place of some."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises `ConfigError` if a special token is missing."""
        found = {token: _find(tokenizer, token) for token in SPECIAL_TOKENS}
        missing = [token for token, number in found.items() if number is None]
        if missing:
            raise ConfigError(
                f"the tokenizer is missing the special tokens {', '.join(missing)}: train one, or add them, "
                "as by the model's added_tokens.json next to it"
            )
        self._tokenizer = tokenizer
        self.ids = {token: number for token, number in found.items() if number is not None}
        self._json = tokenizer.to_str()
        added = tokenizer.get_added_tokens_decoder()
        self._silent = frozenset(number for number, token in added.items() if token.special)
        controls = control_tokens(tokenizer, {*SPECIAL_TOKENS, *FAMILY_TOKENS})
        self._forbidden = frozenset(self.ids.values())
        self._encoder = text_encoder(tokenizer, self._json, controls)
        # Conversations repeat roles, line ends and questions: most texts have been encoded before.
        self._encoded = functools.lru_cache(maxsize=CACHED_TEXTS)(self._encode)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Self:
        """Learns `vocab_size` tokens, special ones and all 256 bytes included; the same texts give the same tokens."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Reads a `tokenizer.json`. Raises `ConfigError` if it is not one."""
        try:
            tokenizer = Tokenizer.from_str(data.decode())
        except Exception as error:  # the library raises nothing more special for a malformed file
            found = recognise(data[:SNIFFED_BYTES], size=len(data), is_text=True)
            raise ConfigError(f"not a tokenizer.json: {f'it {found}' if found else one_line(error)}") from error
        return cls(tokenizer)

    def to_bytes(self) -> bytes:
        """The `tokenizer.json` of this tokenizer."""
        return self._json.encode()

    def __len__(self) -> int:
        """Number of tokens, special ones included."""
        return self._tokenizer.get_vocab_size()

    def special(self, name: str) -> int:
        """The id of a special token by its own name. Raises `ConfigError` if there is none."""
        number = self._tokenizer.token_to_id(name)
        if number is None:
            raise ConfigError(f"the tokenizer has no token {name}: set data.template.style to the tokenizer's family")
        return number

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; never a control token.

        Raises `ConfigError` for a tokenizer that has one of them for characters that it does not know.
        """
        return list(self._encoded(text))

    def _encode(self, text: str) -> tuple[int, ...]:
        ids = tuple(self._encoder.encode(text, add_special_tokens=False).ids)
        if not self._forbidden.isdisjoint(ids):
            raise ConfigError(
                f"the tokenizer makes a control token of the text '{one_line(text, limit=80)}': give a tokenizer that "
                "has all bytes, or an unk_token of its own"
            )
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of ids, special tokens left out."""
        spoken = [number for number in ids if number not in self._silent]
        return self._tokenizer.decode(spoken, skip_special_tokens=False)


def _find(tokenizer: Tokenizer, token: str) -> int | None:
    number = tokenizer.token_to_id(token)
    return tokenizer.token_to_id(LLAMA_NAMES[token]) if number is None and token in LLAMA_NAMES else number
