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
        A service that refuses "max_tokens" and asks for "max_completion_tokens" gets that, from then on.
        Raises RemoteError for everything that the service or the way to it does wrong, a refusal and an answer cut
        short or filtered too; ipvg.Cancelled after `cancel()`; KeyboardInterrupt.
        """
        with self._client() as client:
            said = self._chat(client, messages, options)
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

    def _chat(self, client, messages: tuple, options: dict) -> dict:
        try:
            body = self.body(messages, self._renamed(options) if self._renames else options)
            return self._send(client.chat, "/chat/completions", body)
        except RemoteError as error:
            # No list of models knows who wants which name (Azure's are the user's own); the refusal says it.
            if self._renames or "max_tokens" not in options or error.status not in (400, 422):
                raise
            if "max_completion_tokens" not in str(error):
                raise
        said = self._send(client.chat, "/chat/completions", self.body(messages, self._renamed(options)))
        self._renames = True
        return said

    _renames = False

    @staticmethod
    def _renamed(options: dict) -> dict:
        return {"max_completion_tokens" if name == "max_tokens" else name: value for name, value in options.items()}
