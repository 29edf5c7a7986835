"""A chat endpoint as OpenAI's API defines it.

>>> endpoint = Endpoint("gpt-4o")                      # OPENAI_API_KEY, OPENAI_BASE_URL
>>> endpoint.ask((("user", ("Say hello.",)),), {"max_tokens": 10})
{'content': 'Hello.', 'finish_reason': 'stop', 'model': 'gpt-4o-2024-08-06', 'prompt_tokens': 10, ...}
"""

from __future__ import annotations

from .service import OPENAI, Limits, RemoteError, Secret, Service, _remote

__all__ = ["OPENAI", "Endpoint", "Limits", "RemoteError", "Secret"]


class Endpoint(Service):
    """A service's "/chat/completions"; the arguments are those of ipvg.service.Service."""

    def body(self, messages: tuple, options: dict) -> bytes:
        """The JSON that `ask` would send. Raises ValueError for text that cannot be sent."""
        return _remote().body(self.model, messages, options)

    def ask(self, messages: tuple, options: dict) -> dict:
        """The model's answer: content, finish_reason, model (str), prompt_tokens, completion_tokens (int, -1 unknown).

        messages: a tuple of (role, parts); a part is a str or (MIME type, bytes). options: further items of the body.
        Raises RemoteError for everything that the service or the way to it does wrong, a refusal and an answer cut
        short or filtered too; ipvg.Cancelled after `cancel()`; KeyboardInterrupt.
        """
        body = self.body(messages, options)
        with self._client() as client:
            said = self._send(client.chat, "/chat/completions", body)
        problem = None
        if said["refusal"] or said["finish_reason"] == "content_filter":
            problem = f"the model refused: {said['refusal'] or 'its content filter stopped the answer'}"
        elif said["finish_reason"] == "length":
            problem = "the answer was cut off; raise max_tokens"
        elif not (said["content"] or "").strip():
            problem = "the answer has no text"
        if problem is not None:
            raise self._failure(problem, said)
        return {k: said[k] for k in ("content", "finish_reason", "model", "prompt_tokens", "completion_tokens")}
