"""How requests to a remote model fail: a sentence for each way, and which of them are tried again."""

from __future__ import annotations

import email.utils
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from .errors import RestillError

_RETRIED = {408, 409, 425, 429, 500, 502, 503, 504, 529}
_FIRST_WAIT = 0.5


@dataclass(frozen=True)
class Endpoint:
    """Where requests go, and how error messages call it."""

    url: str
    model: str
    key: str

    def headers(self) -> dict[str, str]:
        """The authorisation header, if there is a key."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}


class RemoteError(RestillError):
    """A request that failed.

    Attributes:
        retry: the same request may succeed later. after: seconds, if known.
        refused: the server took the request and will not answer it (too long, against its rules); another may do.
    """

    def __init__(self, message: str, *, retry: bool = False, after: float | None = None, refused: bool = False) -> None:
        super().__init__(message)
        self.retry, self.after, self.refused = retry, after, refused


class Retry:
    """The attempts of one call.

    Args:
        attempts: how many there may be. longest: seconds between two of them at most.
        timeout: seconds of one attempt, for the error message.
    """

    def __init__(self, endpoint: Endpoint, *, attempts: int, longest: float, timeout: float) -> None:
        self._endpoint, self._attempts, self._longest, self._timeout = endpoint, attempts, longest, timeout
        self._made = 0

    def check(self, response: httpx.Response) -> None:
        """Raise what the status says. The body must have been read if it is an error."""
        if response.status_code >= 400:
            raise _from_status(response, self._endpoint)
        if not response.is_success:
            target = response.headers.get("location", "nowhere")
            raise RemoteError(
                f"{self._endpoint.url} answered {response.status_code} (redirect to {target}); "
                "give the final address as base_url"
            )

    def wait_after(self, error: Exception) -> float:
        """Seconds to wait before the next attempt.

        Raises:
            RemoteError: the failure is final, or the attempts are used up.
        """
        failure = error if isinstance(error, RemoteError) else self._from_httpx(error)
        self._made += 1
        if not failure.retry:
            raise failure from error
        if self._made >= self._attempts:
            times = "once" if self._made == 1 else f"{self._made} times"
            raise RemoteError(f"{failure} (tried {times})") from error
        if failure.after is not None:
            return min(failure.after, self._longest)
        # Full jitter, so that many workers do not come back at the same moment.
        ceiling = min(self._longest, _FIRST_WAIT * 2 ** (self._made - 1))
        return random.uniform(ceiling / 2, ceiling)

    def _from_httpx(self, error: Exception) -> RemoteError:
        url = self._endpoint.url
        if isinstance(error, httpx.TimeoutException):
            what = "connect to" if isinstance(error, httpx.ConnectTimeout) else "get an answer from"
            return RemoteError(f"could not {what} {url} within {self._timeout:g} s; raise timeout", retry=True)
        if isinstance(error, httpx.ConnectError):
            text = str(error).lower()
            if any(s in text for s in ("name or service", "nodename", "name resolution", "getaddrinfo")):
                host = httpx.URL(url).host
                return RemoteError(f"the host {host!r} is unknown (DNS); check base_url", retry=True)
            if "certificate" in text or "ssl" in text:
                return RemoteError(f"no secure connection to {url}: {error}; check the certificate or use http://")
            return RemoteError(f"no connection to {url} ({error}); is the server running there?", retry=True)
        if isinstance(error, (httpx.UnsupportedProtocol, httpx.InvalidURL)):
            return RemoteError(f"{url} is no valid address ({error}); check base_url")
        return RemoteError(f"the connection to {url} broke ({error or type(error).__name__}); try again", retry=True)


def _from_status(response: httpx.Response, endpoint: Endpoint) -> RemoteError:
    status, detail = response.status_code, _detail(response)
    said = f"{endpoint.url} answered {status}" + (f": {detail}" if detail else "")
    low = detail.lower()
    if status in (401, 403):
        mend = "check the API key" if endpoint.key else "set OPENAI_API_KEY or pass api_key"
        return RemoteError(f"{said}; {mend}")
    if status == 404:
        return RemoteError(
            f"{said}; is base_url right (it usually ends in /v1) and does {endpoint.model!r} exist there?"
        )
    if status in (400, 413, 422) and "context" in low and ("length" in low or "window" in low or "token" in low):
        mend = f"the messages are too long for {endpoint.model!r}: shorten them or ask for less"
        return RemoteError(f"{said}; {mend}", refused=True)
    if status == 429 and "quota" in low:
        return RemoteError(f"{said}; the account's quota is used up")
    if status == 429:
        return RemoteError(f"{said}; lower the concurrency", retry=True, after=_retry_after(response))
    if status in _RETRIED or status >= 500:
        return RemoteError(f"{said}; the server failed, try again later", retry=True, after=_retry_after(response))
    return RemoteError(f"{said}; the server refuses the request", refused=status in (400, 413, 422))


def _detail(response: httpx.Response) -> str:
    try:
        body = response.json()
    except ValueError:
        body = response.text
    if isinstance(body, Mapping):
        body = body.get("error", body.get("message", body.get("detail", body)))
        body = body.get("message", body) if isinstance(body, Mapping) else body
    text = " ".join(str(body).split())
    return text if len(text) <= 300 else text[:297] + "..."


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that ``Retry-After`` asks for, given as a number or as a date."""
    value = response.headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def missing(field: str, endpoint: Endpoint) -> RemoteError:
    """The error for an answer without a field that the protocol promises."""
    return RemoteError(f"the answer of {endpoint.url} has no {field}; is base_url an OpenAI chat endpoint?")
