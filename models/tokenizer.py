"""Text to token ids and back, such that text from outside can never forge a control token."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers

from .bpe import byte_table, without_tokens
from .errors import RestillError
from .text import well_formed

if TYPE_CHECKING:
    from .chat_template import ChatTemplate, Part
    from .checkpoint.gguf import GgufFile

# Tokens that end an assistant turn in one model family or another.
_TURN_ENDS = tuple("<|im_end|> <|endoftext|> <|eot_id|> <|end_of_text|> <|end|> <end_of_turn> </s>".split())


class Tokenizer:
    """A tokenizer with its chat template.

    Two `tokenizers` instances share one vocabulary. One knows the control tokens and encodes the template;
    the other has them neither as added tokens nor in its vocabulary, so that no text whatever can reach their
    ids. On text without control tokens the two agree.

    Attributes:
        vocab_size: number of ids.
        eos_id: the token that ends a sequence or turn.
        eos_ids: all tokens that end an assistant turn, `eos_id` first.
        pad_id: the filler of batches.
        special_tokens: control tokens by text; `special_ids` are their ids.
        chat_template: jinja2 text, or None.
        hf_json: the text of ``tokenizer.json`` (llguidance reads it).
    """

    def __init__(
        self,
        hf_json: str,
        *,
        eos: str,
        pad: str | None,
        chat_template: str | None,
        variables: Mapping[str, Any],
    ) -> None:
        self.hf_json = hf_json
        self.chat_template = chat_template
        try:
            self._full = tokenizers.Tokenizer.from_str(hf_json)
        except Exception as error:  # the library raises bare Exception
            raise RestillError(f"not a tokenizer.json that the tokenizers library reads: {error}") from error
        data = json.loads(hf_json)
        if data["model"]["type"] != "BPE":  # of others, not every token can be taken out
            raise RestillError(f"tokenizer model {data['model']['type']!r} is not supported; use a BPE tokenizer")
        # Whitespace runs are added tokens in some vocabularies; they control nothing.
        added = data["added_tokens"]
        control = {t["content"]: t["id"] for t in added if t["special"] or t["content"].strip()}
        self._plain = tokenizers.Tokenizer.from_str(without_tokens(data, control.keys()))
        self.special_tokens: dict[str, int] = control
        self.special_ids: frozenset[int] = frozenset(control.values())
        self.vocab_size: int = self._full.get_vocab_size(with_added_tokens=True)
        self.eos_id: int = self._id(eos)
        self.pad_id: int = self.eos_id if pad is None else self._id(pad)
        ends = [self.eos_id, *(control[t] for t in _TURN_ENDS if t in control)]
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys(ends))
        self._variables = dict(variables)
        self._byte_level = '"ByteLevel"' in json.dumps(data.get("decoder"))

    # -- construction

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        tokenizer_config: Mapping[str, Any] | None = None,
        chat_template: str | None = None,
    ) -> Tokenizer:
        """Read a ``tokenizer.json``.

        Args:
            path: the file.
            tokenizer_config: the contents of ``tokenizer_config.json`` (names of eos and pad, chat template).
            chat_template: a jinja2 template that wins over the one in ``tokenizer_config``.
        """
        path = Path(path)
        config = dict(tokenizer_config or {})
        try:
            text = path.read_text(encoding="utf-8")
            data = json.loads(text)
        except (OSError, ValueError) as error:
            raise RestillError(f"cannot read the tokenizer {path}: {error}") from error
        named = {k: v for k, v in config.items() if k.endswith("_token") and isinstance(v, str | Mapping)}
        names = {k: v if isinstance(v, str) else v["content"] for k, v in named.items()}
        eos = names.get("eos_token")
        if eos is None:
            known = {t["content"] for t in data.get("added_tokens", ())}
            eos = next((t for t in _TURN_ENDS if t in known), None)
        if eos is None:
            raise RestillError(f"{path} has no end-of-sequence token; set eos_token in tokenizer_config.json")
        template = chat_template or _pick_template(config.get("chat_template"))
        return cls(text, eos=eos, pad=names.get("pad_token"), chat_template=template, variables=names)

    @classmethod
    def from_dir(cls, path: str | Path) -> Tokenizer:
        """Read ``tokenizer.json``, ``tokenizer_config.json`` and ``chat_template.jinja`` of a folder."""
        from .checkpoint.safetensors import read_json

        path = Path(path)
        if not (path / "tokenizer.json").is_file():
            raise RestillError(f"no tokenizer.json in {path}; save the model with its fast tokenizer")
        config_path, jinja = path / "tokenizer_config.json", path / "chat_template.jinja"
        config = read_json(config_path) if config_path.is_file() else None
        template = jinja.read_text(encoding="utf-8") if jinja.is_file() else None
        return cls.from_file(path / "tokenizer.json", config, template)

    @classmethod
    def from_gguf(cls, file: str | Path | GgufFile) -> Tokenizer:
        """Read the byte-level BPE tokenizer inside a GGUF file.

        Raises:
            RestillError: another kind of tokenizer, or an unknown pre-tokenizer.
        """
        from .checkpoint.gguf import GgufFile

        gguf = file if isinstance(file, GgufFile) else GgufFile(file)
        text, tokens = gguf.tokenizer_json(), gguf["tokenizer.ggml.tokens"]
        ids = {n: gguf.get(f"tokenizer.ggml.{n}_token_id") for n in ("bos", "eos", "padding")}
        names = {n: tokens[i] for n, i in ids.items() if i is not None}
        if "eos" not in names:
            raise RestillError(f"{gguf.path} names no end-of-sequence token (tokenizer.ggml.eos_token_id)")
        variables = {f"{n}_token": t for n, t in names.items() if n != "padding"}
        return cls(
            text,
            eos=names["eos"],
            pad=names.get("padding"),
            chat_template=gguf.get("tokenizer.chat_template"),
            variables=variables,
        )

    def with_json(self, hf_json: str) -> Tokenizer:
        """Another ``tokenizer.json`` with the same chat template, end-of-sequence and padding tokens."""
        eos, pad = (str(self._full.id_to_token(id)) for id in (self.eos_id, self.pad_id))
        return Tokenizer(hf_json, eos=eos, pad=pad, chat_template=self.chat_template, variables=self._variables)

    # -- text

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of ``text``; no begin-of-sequence token is added.

        Args:
            text: any string; lone surrogates become U+FFFD.
            special: read control tokens (``<|im_end|>``) as such. False, the default, is for every text that
                comes from outside: it never yields a control token's id.
        """
        tokenizer = self._full if special else self._plain
        return tokenizer.encode(well_formed(text), add_special_tokens=False).ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Text of ``ids``; bytes that are no UTF-8 become U+FFFD, an id beyond the vocabulary stands for nothing."""
        if skip_special:
            ids = [i for i in ids if i not in self.special_ids]
        if self._byte_level:
            known = self._bytes
            return b"".join([known[i] for i in ids if i < len(known)]).decode("utf-8", "replace")
        return self._full.decode(list(ids), skip_special_tokens=False)

    def token_bytes(self, id: int) -> bytes:
        """The bytes that token ``id`` stands for (a part of a character, for some)."""
        return self._bytes[id]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over vocabulary, special tokens and chat template."""
        parts = [self.hf_json, self.chat_template or "", str(self.eos_ids), str(self.pad_id)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def hf_config(self) -> dict[str, Any]:
        """The ``tokenizer_config.json`` that goes with `hf_json`."""
        names = {**self._variables, "eos_token": self._full.id_to_token(self.eos_id)}
        return {
            **names,
            "pad_token": self._full.id_to_token(self.pad_id),
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "chat_template": self.chat_template,
        }

    # -- chat

    def chat(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> list[int]:
        """Token ids of a conversation.

        Template text is encoded with control tokens, each message's content on its own and without them. For
        contents that begin with no white space the ids are those of transformers' ``apply_chat_template``.

        Args:
            messages: mappings of ``role`` and ``content``.
            add_generation_prompt: end with the opening of an assistant turn.

        Raises:
            RestillError: no template, a bad message, or a template that refuses or rewrites a content.
        """
        parts = self._template.render(messages, add_generation_prompt=add_generation_prompt)
        return self._ids(parts, messages)

    def continue_chat(self, assistant_ids: Sequence[int], messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The ids after a sampled assistant turn: its close, ``messages``, and the next one's opening.

        ``chat(ms) + sampled + continue_chat(sampled, [m])`` equals
        ``chat([*ms, {"role": "assistant", "content": text of sampled}, m])``, whenever the text of
        ``sampled`` encodes to ``sampled`` again.

        Args:
            assistant_ids: what was sampled, with or without its end token (which is then not repeated).
            messages: the turns that follow.
        """
        before = [{"role": "user", "content": "-"}, {"role": "assistant", "content": "-"}]
        everything = [*before, *messages]
        parts = self._template.render(everything, add_generation_prompt=True)
        ids = self._ids(parts[parts.index(1) + 1 :], everything)
        if assistant_ids and ids and assistant_ids[-1] == ids[0] and ids[0] in self.eos_ids:
            return ids[1:]
        return ids

    def _ids(self, parts: Iterable[Part], messages: Sequence[Mapping[str, str]]) -> list[int]:
        ids: list[int] = []
        for part in parts:
            text = part if isinstance(part, str) else messages[part]["content"]
            ids += self.encode(text, special=isinstance(part, str))
        return ids

    @cached_property
    def _template(self) -> ChatTemplate:
        from .chat_template import ChatTemplate

        if self.chat_template is None:
            raise RestillError("this tokenizer has no chat template; use an instruct model, or set chat_template")
        return ChatTemplate(self.chat_template, self._variables)

    # -- helpers

    def _id(self, token: str) -> int:
        id = self._full.token_to_id(token)
        if id is None:
            raise RestillError(f"token {token!r} is not in the vocabulary; mend tokenizer_config.json")
        return id

    @cached_property
    def _bytes(self) -> list[bytes]:
        added = {id: token.content for id, token in self._full.get_added_tokens_decoder().items()}
        table = byte_table() if self._byte_level else None
        size = max(self._full.get_vocab(with_added_tokens=True).values()) + 1
        out = []
        for i in range(size):
            token = self._full.id_to_token(i) or ""
            if i in added:
                out.append(added[i].encode())
            elif table is not None:
                out.append(bytes(table[c] for c in token))
            elif re.fullmatch(r"<0x[0-9A-F]{2}>", token):
                out.append(bytes([int(token[3:5], 16)]))
            else:
                out.append(token.replace("\u2581", " ").encode())
        return out


def _pick_template(template: Any) -> str | None:
    if isinstance(template, list):  # several named templates
        return next((t["template"] for t in template if t["name"] == "default"), None)
    return template
