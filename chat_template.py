"""The one chat template of training, validation, evaluation and inference; needs tokenizers and jinja2 only.

Markup and content are tokenised apart. The template is rendered once for each shape of conversation with a
placeholder where each content goes; what lies between the placeholders is markup and may hold control
tokens, what a person wrote never becomes one. That also makes the assistant's spans exact: they run from
the first token of an answer through the token that ends the turn. Records for which the pieces do not add
up to what the template renders are refused, never trained approximately.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2
from tokenizers import Tokenizer

from errors import ConfigError, RecordRefused
from jinja_sandbox import compile_template, distinguishing_constants, render

Message = dict[str, Any]
"""A dict with ``role`` (system, user, assistant, tool), ``content`` (str) and, with tools, ``tool_calls``."""

IGNORE = -100
"""Label of a token that is not trained."""

EXACT_CHECKS_PER_SHAPE = 100
"""Conversations of each shape that are rendered whole and compared; later ones only when suspicious."""

SHAPES_KEPT = 1000
"""Shapes whose markup is remembered at once; files in which every shape is new must not fill the memory."""

_PLACEHOLDER = re.compile("\ue000([0-9]+)\ue001")
_EXPECTED = "a conversation that the chat template renders word for word"
_PROBE: list[Message] = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one record, and the half-open ranges of them that are trained."""

    input_ids: list[int]
    spans: list[tuple[int, int]]

    @property
    def labels(self) -> list[int]:
        """The token ids inside the spans, `IGNORE` elsewhere; as long as `input_ids`."""
        labels = [IGNORE] * len(self.input_ids)
        for start, end in self.spans:
            labels[start:end] = self.input_ids[start:end]
        return labels

    @property
    def assistant_tokens(self) -> int:
        """How many tokens are trained."""
        return sum(end - start for start, end in self.spans)


@dataclass(frozen=True, slots=True)
class Layout:
    """An `Encoded` without its tokens: how many there are, and which ranges of them are trained."""

    length: int
    spans: list[tuple[int, int]]


@dataclass(slots=True)
class _Shape:
    """The markup of all conversations with the same roles: one piece before each content, one after the last.

    `ends[i]` is how many tokens of the markup after content `i` belong to the assistant's turn; 0 for the
    other roles.
    """

    markup_text: list[str]
    markup_ids: list[list[int]]
    slots: list[int]
    ends: list[int]
    checks_left: int = EXACT_CHECKS_PER_SHAPE

    def lay_out(self, content_lengths: Iterable[int]) -> Layout:
        """Return where the contents come to lie when they have so many tokens."""
        position = len(self.markup_ids[0])
        spans = []
        for length, markup, end in zip(content_lengths, self.markup_ids[1:], self.ends, strict=True):
            start = position
            position += length
            if end:
                spans.append((start, position + end))
            position += len(markup)
        return Layout(position, spans)


@dataclass(frozen=True, slots=True)
class Prepared:
    """Many conversations as their markup, which is tokenised already, and their contents, which are not."""

    shapes: list[_Shape | RecordRefused]
    contents: list[str]

    def lay_out(self, content_lengths: Iterable[int]) -> list[Layout | RecordRefused]:
        """Return the layout of each conversation when its contents have so many tokens."""
        lengths = iter(content_lengths)
        return [
            shape if isinstance(shape, RecordRefused) else shape.lay_out(islice(lengths, len(shape.slots)))
            for shape in self.shapes
        ]


class ChatTemplate:
    """A tokenizer with its template. Build it with `ChatTemplate.load`."""

    def __init__(
        self,
        tokenizer_json: str,
        template: str | None,
        special_tokens: Mapping[str, str],
        *,
        template_kwargs: Mapping[str, Any] | None = None,
        stop_token_ids: Iterable[int] = (),
    ) -> None:
        """`special_tokens` maps ``eos_token``, ``bos_token``, ``pad_token`` … to their text."""
        self.tokenizer = Tokenizer.from_str(tokenizer_json)
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.tokenizer.encode_special_tokens = True
        self._markup_tokenizer = Tokenizer.from_str(tokenizer_json)
        self._markup_tokenizer.no_padding()
        self._markup_tokenizer.no_truncation()
        self._special_tokens = dict(special_tokens)
        self._template_kwargs = dict(template_kwargs or {})
        added = self.tokenizer.get_added_tokens_decoder()
        self._control_ids = frozenset(number for number, token in added.items() if token.special)
        self._control_texts = tuple(added[number].content for number in self._control_ids)
        self.eos_token_id = self._id_of("eos_token")
        self.bos_token_id = self._id_of("bos_token")
        self.pad_token_id = self._choose_pad()
        self._shapes: dict[Any, _Shape] = {}
        self._source = template
        self._compiled: jinja2.Template | None = None
        self._suspicious: tuple[str, ...] = ()
        if template is not None:
            self._compiled = compile_template(template)
            self._suspicious = distinguishing_constants(template)
        self.end_of_turn_id = self._find_end_of_turn()
        self._disagreement: str | None = None
        self._disagreement = self._find_disagreement()
        stops = {self.eos_token_id, self.end_of_turn_id, *stop_token_ids}
        self.stop_token_ids = frozenset(number for number in stops if number is not None)

    @classmethod
    def load(cls, folder: Path, template_kwargs: Mapping[str, Any] | None = None) -> ChatTemplate:
        """Read tokenizer.json, its template and its special tokens from a model folder.

        Raises ConfigError when the folder has no fast tokenizer or its template cannot be parsed.
        """
        tokenizer_file = folder / "tokenizer.json"
        if not tokenizer_file.is_file():
            raise ConfigError(
                f"{folder}: found no tokenizer.json, expected a fast tokenizer; choose another base"
            )
        settings = _read_optional(folder / "tokenizer_config.json")
        generation = _read_optional(folder / "generation_config.json")
        template_file = folder / "chat_template.jinja"
        template = (
            template_file.read_text(encoding="utf-8")
            if template_file.is_file()
            else settings.get("chat_template")
        )
        if isinstance(template, list):
            named = {entry["name"]: entry["template"] for entry in template}
            template = named.get("default")
        stops = generation.get("eos_token_id")
        try:
            return cls(
                tokenizer_file.read_text(encoding="utf-8"),
                template,
                _special_tokens(settings),
                template_kwargs=template_kwargs,
                stop_token_ids=stops if isinstance(stops, list) else [],
            )
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(f"{folder}: the chat template cannot be parsed: {error}") from error

    @property
    def has_template(self) -> bool:
        """Whether conversations can be encoded; plain text always can."""
        return self._compiled is not None

    @property
    def supports_tools(self) -> bool:
        """Whether the template reads ``tools``."""
        return self._source is not None and "tools" in self._source

    def encode_messages(self, messages: Sequence[Message], tools: list[Any] | None = None) -> Encoded:
        """Encode a conversation whose assistant turns are all trained, end-of-turn token included.

        Raises RecordRefused when the template cannot render it word for word.
        """
        (encoded,) = self.encode_messages_batch([(messages, tools)])
        if isinstance(encoded, RecordRefused):
            raise encoded
        return encoded

    def encode_messages_batch(
        self, conversations: Sequence[tuple[Sequence[Message], list[Any] | None]]
    ) -> list[Encoded | RecordRefused]:
        """Encode many conversations at once; a refusal stands in the place of the record it refuses."""
        prepared = self.prepare_batch(conversations)
        ids = iter(self._encode_contents(prepared.contents))
        return [
            shape
            if isinstance(shape, RecordRefused)
            else _assemble(shape, list(islice(ids, len(shape.slots))))
            for shape in prepared.shapes
        ]

    def prepare_batch(self, conversations: Sequence[tuple[Sequence[Message], list[Any] | None]]) -> Prepared:
        """Do what of `encode_messages_batch` comes before the tokenizer.

        With `count_tokens` and `Prepared.lay_out` conversations are measured without handing out tokens,
        and the part that needs no Python can run in another thread.
        """
        shapes: list[_Shape | RecordRefused] = []
        contents: list[str] = []
        for messages, tools in conversations:
            try:
                shape, texts = self._prepare(messages, tools, generation_prompt=False)
            except RecordRefused as refusal:
                shapes.append(refusal)
                continue
            shapes.append(shape)
            contents.extend(texts)
        return Prepared(shapes, contents)

    def count_tokens(self, contents: list[str]) -> list[int]:
        """Return how many tokens each content becomes; what occurs often is tokenised once."""
        different = list(dict.fromkeys(contents))
        encodings = self.tokenizer.encode_batch_fast(different, add_special_tokens=False)
        lengths = dict(zip(different, map(len, encodings), strict=True))
        return [lengths[content] for content in contents]

    def encode_prompt(self, messages: Sequence[Message], tools: list[Any] | None = None) -> list[int]:
        """Encode a conversation up to the point where the assistant speaks next.

        For a conversation that training has seen, it is the beginning of what `encode_messages` gives.
        """
        shape, texts = self._prepare(messages, tools, generation_prompt=True)
        return _assemble(shape, self._encode_contents(texts)).input_ids

    def encode_text(self, text: str) -> Encoded:
        """Encode plain text with the end token after it; every token is trained."""
        return self.encode_text_batch([text])[0]

    def encode_beginning(self, text: str) -> list[int]:
        """Encode plain text that is to be gone on with: what `encode_text` gives, without the end token."""
        ids = self.tokenizer.encode(text, add_special_tokens=True).ids
        return ids[:-1] if ids[-1:] == [self.eos_token_id] else ids

    def encode_text_batch(self, texts: Sequence[str]) -> list[Encoded]:
        """Encode many plain texts at once, each with the end token after it."""
        end = [] if self.eos_token_id is None else [self.eos_token_id]
        encoded = []
        for encoding in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=True):
            ids = encoding.ids
            if ids[-1:] != end:
                ids = ids + end
            encoded.append(Encoded(ids, [(0, len(ids))]))
        return encoded

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Turn token ids into text."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=skip_special))

    def _encode_contents(self, contents: list[str]) -> list[list[int]]:
        return [
            encoding.ids for encoding in self.tokenizer.encode_batch_fast(contents, add_special_tokens=False)
        ]

    def _prepare(
        self, messages: Sequence[Message], tools: list[Any] | None, *, generation_prompt: bool
    ) -> tuple[_Shape, list[str]]:
        """Return the shape of a conversation and its contents as the template would show them."""
        if self._compiled is None:
            raise _refusal("a base model without a chat template", "records of plain 'text', or another base")
        if self._disagreement is not None:
            raise RecordRefused(
                "messages",
                f"a chat template that trains and asks differently: {self._disagreement}",
                "the same markup in both",
                "set model.chat_template_kwargs, for instance {enable_thinking: false}",
            )
        if tools and not self.supports_tools:
            raise RecordRefused(
                "tools",
                "tools",
                "no tools: this chat template has none",
                "choose a base whose template has tools",
            )
        # Beside role and content a message holds nothing but tool calls, names and ids.
        structured = tools is not None or max(map(len, messages), default=0) > 2
        if structured:
            self._refuse_control_tokens(messages, tools)
            shape = self._render_shape(messages, tools, generation_prompt)
        else:
            key = (generation_prompt, *[(message["role"], not message["content"]) for message in messages])
            known = self._shapes.get(key)
            shape = known or self._render_shape(messages, tools, generation_prompt)
            if known is None:
                if len(self._shapes) >= SHAPES_KEPT:
                    self._shapes.clear()
                self._shapes[key] = shape
        texts = [messages[slot]["content"] for slot in shape.slots]
        if shape.checks_left or self._has_suspicious(texts):
            shape.checks_left = max(0, shape.checks_left - 1)
            texts = self._check_exact(shape, texts, messages, tools, generation_prompt)
        return shape, texts

    def _has_suspicious(self, contents: list[str]) -> bool:
        """Tell whether the template might treat one of these contents otherwise than any other."""
        for content in contents:
            if content[:1].isspace() or content[-1:].isspace():
                return True
            for constant in self._suspicious:
                if constant in content:
                    return True
        return False

    def _check_exact(
        self,
        shape: _Shape,
        texts: list[str],
        messages: Sequence[Message],
        tools: list[Any] | None,
        generation_prompt: bool,
    ) -> list[str]:
        """Return `texts`, or `texts` trimmed where the template trims; refuse when neither adds up."""
        rendered = self._render(messages, tools, generation_prompt)
        for candidate in (texts, [text.strip() for text in texts]):
            pieces = [shape.markup_text[0]]
            for text, markup in zip(candidate, shape.markup_text[1:], strict=True):
                pieces += (text, markup)
            if "".join(pieces) == rendered:
                return candidate
        raise _refusal(
            "a content that the chat template rewrites", "contents without the template's own markers"
        )

    def _render(self, messages: Sequence[Message], tools: list[Any] | None, generation_prompt: bool) -> str:
        assert self._compiled is not None
        try:
            return render(
                self._compiled,
                {
                    "messages": messages,
                    "tools": tools,
                    "add_generation_prompt": generation_prompt,
                    **self._special_tokens,
                    **self._template_kwargs,
                },
            )
        except (jinja2.TemplateError, TypeError, AttributeError, KeyError, IndexError) as error:
            raise _refusal(
                f"a conversation that the chat template refuses: {error}", "other roles"
            ) from error

    def _render_shape(
        self, messages: Sequence[Message], tools: list[Any] | None, generation_prompt: bool
    ) -> _Shape:
        """Render `messages` with placeholders for contents and cut the result at them."""
        marked = [
            {**message, "content": f"\ue000{index}\ue001"} if message["content"] else message
            for index, message in enumerate(messages)
        ]
        rendered = self._render(marked, tools, generation_prompt)
        silent = [
            i for i, message in enumerate(messages) if _is_assistant(message) and not message["content"]
        ]
        for index in reversed(silent):
            # An answer of tool calls alone begins where its prompt ends.
            prompt = self._render(marked[:index], tools, True)
            if not rendered.startswith(prompt):
                raise _refusal("a template that rewrites earlier turns", _EXPECTED)
            rendered = f"{prompt}\ue000{index}\ue001{rendered[len(prompt) :]}"
        pieces = _PLACEHOLDER.split(rendered)
        markup, slots = pieces[0::2], [int(piece) for piece in pieces[1::2]]
        if slots != [i for i, message in enumerate(messages) if message["content"] or _is_assistant(message)]:
            raise _refusal("a template that drops or repeats a message", _EXPECTED)
        ids = [
            encoding.ids
            for encoding in self._markup_tokenizer.encode_batch_fast(markup, add_special_tokens=False)
        ]
        ends = [
            self._turn_end(ids[position + 1]) if _is_assistant(messages[slot]) else 0
            for position, slot in enumerate(slots)
        ]
        return _Shape(markup, ids, slots, ends)

    def _turn_end(self, following: list[int]) -> int:
        """Return how many of the markup tokens after an answer belong to it, end-of-turn token included."""
        for position, number in enumerate(following):
            if number == self.end_of_turn_id:
                return position + 1
        raise _refusal("a template that does not end the assistant's turn", _EXPECTED)

    def _refuse_control_tokens(self, messages: Sequence[Message], tools: list[Any] | None) -> None:
        """Refuse control tokens inside tools and calls, which the template writes into its markup."""
        structured = [
            {key: value for key, value in message.items() if key != "content"} for message in messages
        ]
        text = json.dumps([structured, tools], ensure_ascii=False)
        for control in self._control_texts:
            if control in text:
                raise RecordRefused(
                    "tools", f"the control token {control}", "tools without control tokens", "rename it"
                )

    def _find_end_of_turn(self) -> int | None:
        """Return the first control token after an answer, or None without a template that has one."""
        if self._compiled is None:
            return None
        probe = [
            {"role": "user", "content": "\ue0000\ue001"},
            {"role": "assistant", "content": "\ue0001\ue001"},
        ]
        try:
            following = _PLACEHOLDER.split(self._render(probe, None, False))[-1]
        except RecordRefused:
            return None
        ids = self._markup_tokenizer.encode(following, add_special_tokens=False).ids
        return next((number for number in ids if number in self._control_ids), None)

    def _find_disagreement(self) -> str | None:
        """Tell whether a prompt ends where training says the answer begins; return what differs."""
        if self._compiled is None or self.end_of_turn_id is None:
            return None
        try:
            full, _ = self._prepare(_PROBE, None, generation_prompt=False)
            prompt, _ = self._prepare(_PROBE[:1], None, generation_prompt=True)
        except RecordRefused:
            return None
        trained, asked = full.markup_text[1], prompt.markup_text[1]
        return (
            None if trained == asked else f"answers begin after {trained!r}, but prompts end with {asked!r}"
        )

    def _id_of(self, name: str) -> int | None:
        text = self._special_tokens.get(name)
        return None if text is None else self.tokenizer.token_to_id(text)

    def _choose_pad(self) -> int:
        """Return a token for padding that is not the end token, where the tokenizer has one to spare."""
        declared = self._id_of("pad_token")
        if declared is not None and declared != self.eos_token_id:
            return declared
        spare = sorted(self._control_ids - {self.eos_token_id, self.bos_token_id})
        return spare[0] if spare else (self.eos_token_id or 0)


def _is_assistant(message: Message) -> bool:
    return bool(message["role"] == "assistant")


def _assemble(shape: _Shape, contents: Sequence[list[int]]) -> Encoded:
    ids = list(shape.markup_ids[0])
    spans = []
    for content, markup, end in zip(contents, shape.markup_ids[1:], shape.ends, strict=True):
        start = len(ids)
        ids += content
        if end:
            spans.append((start, len(ids) + end))
        ids += markup
    return Encoded(ids, spans)


def _refusal(found: str, expected: str) -> RecordRefused:
    return RecordRefused("messages", found, expected, "change the record or choose another base model")


def _read_optional(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the named special tokens; tokenizer_config.json holds them as text or as objects."""
    tokens = {}
    for name, value in settings.items():
        if name.endswith("_token"):
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                tokens[name] = text
    return tokens
