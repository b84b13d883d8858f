"""Every error that a client or an operator can meet, with its status, type and code.

    error                      status  type                       code
    InvalidJSONError           400     invalid_request_error      invalid_json
    InvalidValueError          400     invalid_request_error      invalid_value
    UnsupportedParameterError  400     invalid_request_error      unsupported_parameter
    ContextLengthError         400     invalid_request_error      context_length_exceeded
    MediaError                 400     invalid_request_error      names what is wrong with the media
    InvalidHTTPError           400     invalid_request_error      invalid_http
    AuthenticationError        401     authentication_error       invalid_api_key
    ForeignOriginError         403     invalid_request_error      foreign_origin
    ModelNotFoundError         404     invalid_request_error      model_not_found
    RouteNotFoundError         404     invalid_request_error      not_found
    MethodNotAllowedError      405     invalid_request_error      method_not_allowed
    RequestTimeoutError        408     invalid_request_error      request_timeout
    RequestTooLargeError       413     invalid_request_error      request_too_large
    HeadTooLargeError          431     invalid_request_error      head_too_large
    QueueFullError             429     rate_limit_error           rate_limit_exceeded
    UnavailableError           503     service_unavailable_error  server_is_overloaded, server_error
    InternalError              500     server_error               server_error
    ConfigError                -       the operator's: `litevl` prints it and exits with 1
    UsageError                 -       a command line that cannot be read: with 2
    DeviceLostError            -       nothing runs on the device any more: the process ends

Raised by every room, turned into JSON by `api/responses.py` alone. Messages never repeat what a
caller sent beyond names and numbers. This module knows no HTTP library.
"""

from typing import ClassVar


class LitevlError(Exception):
    """An error with an answer: what went wrong, and what would work.

    `param` is the dotted path of the field at fault; `headers` go out with the answer.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str = "server_error"
    default_headers: ClassVar[dict[str, str]] = {}

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or type(self).code
        self.headers = dict(self.default_headers)


class InvalidRequestError(LitevlError):
    """The caller's fault; sending the same again will not help."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class InvalidJSONError(InvalidRequestError):
    """The body is not JSON; the message tells line and column."""

    code = "invalid_json"


class InvalidValueError(InvalidRequestError):
    """A field has the wrong type or lies out of range."""


class UnsupportedParameterError(InvalidRequestError):
    """A known field asks for something that litevl cannot do."""

    code = "unsupported_parameter"


class ContextLengthError(InvalidRequestError):
    """The prompt does not fit; the message tells the tokens needed and what would fit."""

    code = "context_length_exceeded"


class MediaError(InvalidRequestError):
    """A picture or clip that cannot be used: its part, and what is wrong with it in one of
    CONTRACT's codes."""

    def __init__(self, param: str, what: str, *, code: str) -> None:
        super().__init__(f"{param}: {what}", param=param, code=code)


class InvalidHTTPError(InvalidRequestError):
    """What came over the wire cannot be read as one request, and one alone."""

    code = "invalid_http"


class AuthenticationError(LitevlError):
    """No key, or a wrong one."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"
    default_headers: ClassVar[dict[str, str]] = {"www-authenticate": "Bearer"}


class ForeignOriginError(InvalidRequestError):
    """A web page of another origin, where no key is asked for."""

    status = 403
    code = "foreign_origin"


class ModelNotFoundError(InvalidRequestError):
    """Another model than the one served; the message lists the names."""

    status = 404
    code = "model_not_found"


class RouteNotFoundError(InvalidRequestError):
    """No such address."""

    status = 404
    code = "not_found"


class MethodNotAllowedError(InvalidRequestError):
    """The address exists, the method does not."""

    status = 405
    code = "method_not_allowed"


class RequestTimeoutError(InvalidRequestError):
    """Head or body came too slowly; SDKs send it again."""

    status = 408
    code = "request_timeout"


class RequestTooLargeError(InvalidRequestError):
    """The body is larger than `--max-body-size`."""

    status = 413
    code = "request_too_large"


class HeadTooLargeError(InvalidRequestError):
    """More headers, or longer ones, than any client has a reason to send."""

    status = 431
    code = "head_too_large"


class QueueFullError(LitevlError):
    """Too many requests wait already."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    default_headers: ClassVar[dict[str, str]] = {"retry-after": "2"}


class UnavailableError(LitevlError):
    """Loading, draining, out of memory or dead: another time, or another server."""

    status = 503
    type = "service_unavailable_error"
    code = "server_is_overloaded"
    default_headers: ClassVar[dict[str, str]] = {"retry-after": "2"}


class InternalError(LitevlError):
    """Our fault. SDKs are told not to send the same request again."""

    default_headers: ClassVar[dict[str, str]] = {"x-should-retry": "false"}


class ConfigError(Exception):
    """What an operator asked for cannot be done; the message says why and what to do."""


class UsageError(ConfigError):
    """The command line or a setting cannot be read; the message says what would do."""


class DeviceLostError(Exception):
    """The device takes no more work from this process, whatever it is; only a new one can help."""
