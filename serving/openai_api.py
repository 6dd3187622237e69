"""OpenAI's requests and answers as far as they are served here, and its shape of an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from chat_template import Message
from serving.catalogue import CURRENT
from serving.tickets import Sampling


def _unicode(text: str) -> str:
    """Refuse half of a surrogate pair, which JSON can hold and no text does."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("no Unicode text: it holds half of a surrogate pair") from error
    return text


def _as_list(given: Any) -> Any:
    return [given] if isinstance(given, str) else given


def _as_parts(content: Any) -> Any:
    if content is None:
        raise ValueError("found null, expected text; calls of tools are not supported here")
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _text_only(kind: Any) -> Any:
    if isinstance(kind, str) and kind != "text":
        raise ValueError(f"found {kind!r}, expected 'text': nothing else is read here")
    return kind


AnyText = Annotated[str, AfterValidator(_unicode)]
Text = Annotated[str, StringConstraints(min_length=1), AfterValidator(_unicode)]
MAX_STOPS = 4
MAX_PROMPTS = 64
_FewTexts = Annotated[list[Text], Field(max_length=MAX_STOPS)]
_SomeTexts = Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
Stops = Annotated[_FewTexts, BeforeValidator(_as_list, json_schema_input_type=Text | _FewTexts)]
Prompts = Annotated[_SomeTexts, BeforeValidator(_as_list, json_schema_input_type=Text | _SomeTexts)]
NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("n", "best_of"), (None, 1)),
    **dict.fromkeys(("frequency_penalty", "presence_penalty", "min_p", "min_tokens"), (None, 0)),
    **dict.fromkeys(("repetition_penalty", "length_penalty", "typical_p"), (None, 1)),
    "top_k": (None, 0, -1),
    **dict.fromkeys(("logprobs", "echo", "ignore_eos", "use_beam_search"), (None, False)),
    "top_logprobs": (None, 0),
    **dict.fromkeys(("tools", "functions", "stop_token_ids", "bad_words"), (None, [])),
    **dict.fromkeys(("tool_choice", "function_call"), (None, "none", "auto")),
    "logit_bias": (None, {}),
    "response_format": (None, {"type": "text"}),
    "suffix": (None, ""),
    "modalities": (None, ["text"]),
    **dict.fromkeys(("audio", "web_search_options"), (None,)),
}
"""What would change an answer and is not done here, with the values that ask for nothing."""
NEUTRAL_IN_MESSAGE: dict[str, tuple[Any, ...]] = {
    "tool_calls": (None, []),
    **dict.fromkeys(("function_call", "audio"), (None,)),
}


def _refuse_unsupported(
    extra: Mapping[str, Any] | None, neutral: Mapping[str, Sequence[Any]], place: str = ""
) -> None:
    """Raise ApiError for a value that asks for something."""
    for name, value in (extra or {}).items():
        if name in neutral and not any(_is_same(value, each) for each in neutral[name]):
            where = f"{place}{name}"
            raise ApiError(400, f"{where}: not supported here; leave it out", code="unsupported", param=where)


def _is_same(value: Any, other: Any) -> bool:
    """Compare as JSON does, where 0 is not false; `logprobs: 0` asks for something."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


class ApiError(Exception):
    """A request that gets an error for an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(status, message, code, param)
        self.headers = {} if retry_seconds is None else {"Retry-After": str(retry_seconds)}


def error_body(
    status: int, message: str, code: str | None = None, param: str | None = None
) -> dict[str, dict[str, str | None]]:
    """Return the body of an error as OpenAI shapes it."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = "server_error" if status >= 500 else kinds.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class StreamOptions(BaseModel):
    """What a streamed answer tells beside its text."""

    include_usage: bool = False


class Wish(BaseModel):
    """What every request may ask for; unknown names are ignored, as OpenAI's clients send many."""

    model_config = ConfigDict(extra="allow")

    model: AnyText = CURRENT
    """``current``, ``base`` or a version."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Longest answer; by default `serving.max_output_tokens`."""
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """The newer name of that."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """0, the default, takes the likeliest token each time: the same prompt has one answer."""
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stops | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def wanted_tokens(self) -> int | None:
        """The longest answer that is asked for, by whatever name."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def stops(self) -> Sequence[str]:
        return self.stop or []

    @property
    def sampling(self) -> Sampling:
        top_p = 1.0 if self.top_p is None else self.top_p
        return Sampling(self.temperature or 0.0, top_p, self.seed)

    @property
    def has_usage_streamed(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def refuse_unsupported(self) -> None:
        """Raise ApiError for what would change the answer and is not done here."""
        _refuse_unsupported(self.model_extra, NEUTRAL)


class TextPart(BaseModel):
    """One part of a message that is a list."""

    type: Annotated[Literal["text"], BeforeValidator(_text_only)]
    text: AnyText


class ChatMessage(BaseModel):
    """One turn."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[TextPart], BeforeValidator(_as_parts, json_schema_input_type=AnyText | list[TextPart])
    ]

    def plain(self) -> Message:
        """Return the turn as the chat template takes it."""
        text = "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(Wish):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        for index, message in enumerate(self.messages):
            _refuse_unsupported(message.model_extra, NEUTRAL_IN_MESSAGE, f"messages.{index}.")


class CompletionRequest(Wish):
    """``POST /v1/completions``: text that is gone on with, without the chat template."""

    prompt: Prompts


class GenerateRequest(Wish):
    """``POST /generate``: one question, answered as `trainbox generate` does."""

    prompt: AnyText
    system: AnyText | None = None

    @property
    def messages(self) -> list[Message]:
        question: list[Message] = [{"role": "user", "content": self.prompt}]
        return question if self.system is None else [{"role": "system", "content": self.system}, *question]
