"""The job of a worker, after it has confined itself.

run     execute a program; its output goes to the host
serve   execute a program, then answer calls of one of its functions over the link
grade   execute a test of a function that answers over the link. The verdict is this process's:
        the program under test is in another one, and what it sends is compared as plain data.

The first message to the host says whether the worker is confined. Later ones come from a process in
which the program may have changed anything: they are its own claim, except in a grader.
"""

import ast
import builtins
import linecache
import os
import secrets
import socket
import sys
import traceback
import types
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from nanochat.sandbox import messages
from nanochat.sandbox.messages import MessageError

MAX_ERROR_CHARACTERS = 1000
FILE_NAME = "<program>"

Job = dict[str, Any]


class NoAnswerError(BaseException):
    """The function under test cannot be asked. Not an Exception, which a test might catch."""


def execute(job: Job, channel: socket.socket, link: socket.socket | None) -> None:
    """Do a job and report how it ended; does not return."""
    report: dict[str, Any] = {"error": None}
    try:
        if job["kind"] == "grade":
            assert link is not None
            grade(job, link)
        else:
            run_program(job["program"], job["show_value"], answer=link)
    except BaseException as error:
        report = {
            "error": describe(error), "memory": isinstance(error, MemoryError),
            "is_unanswered": isinstance(error, NoAnswerError),
        }  # fmt: skip
        if job["kind"] == "run":
            _print_traceback(error)
    for stream in (sys.stdout, sys.stderr):
        with suppress(BaseException):
            stream.flush()
    with suppress(BaseException):
        messages.send(channel, report)
    os._exit(0)  # ends its threads, too


def describe(error: BaseException) -> str:
    """The last line of a traceback."""
    try:
        if isinstance(error, NoAnswerError | MessageError):  # without the name of the module
            return str(error)
        return traceback.format_exception_only(error)[-1].strip()[:MAX_ERROR_CHARACTERS]
    except BaseException:  # of its __str__
        return type(error).__name__[:MAX_ERROR_CHARACTERS]


def _print_traceback(error: BaseException) -> None:
    with suppress(BaseException):
        trace = error.__traceback__
        while trace and trace.tb_frame.f_code.co_filename != FILE_NAME:
            trace = trace.tb_next
        traceback.print_exception(error.with_traceback(trace))


def run_program(program: str, show_value: bool, answer: socket.socket | None) -> None:
    """Execute a program as __main__; raises what it raises.

    show_value: print the value of a last expression as a prompt of Python does.
    answer: then wait for calls.
    """
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    linecache.cache[FILE_NAME] = (len(program), None, program.splitlines(True), FILE_NAME)
    tree = ast.parse(program, FILE_NAME)
    last = []
    if show_value and tree.body and isinstance(tree.body[-1], ast.Expr):
        last = [tree.body.pop()]
    exec(compile(tree, FILE_NAME, "exec"), module.__dict__)
    if last:
        exec(compile(ast.Interactive(last), FILE_NAME, "single"), module.__dict__)
    if answer is not None:
        _answer_calls(answer, module)


def _answer_calls(link: socket.socket, module: types.ModuleType) -> None:
    while True:
        try:
            request = messages.receive(link)
        except MessageError:  # the grader has ended
            return
        if "echo" in request:
            reply = {"value": request["echo"]}
        else:
            try:
                function = getattr(module, request["function"])
                value = function(*messages.decode(request["arguments"]),
                                 **messages.decode(request["named"]))  # fmt: skip
                reply = {"value": messages.encode(value)}
            except Exception as error:
                reply = {"error": [type(error).__name__, describe(error)]}
        messages.send(link, reply)


def grade(job: Job, link: socket.socket) -> None:
    """Execute the prompt, for helper functions that a test uses, and check the function.

    Returns if the test passes; raises otherwise.
    """
    name = job["function"]
    remote = remote_function(name, link)
    namespace: dict[str, Any] = {"__name__": "test"}
    exec(compile(job["prompt"], "<prompt>", "exec"), namespace)
    exec(compile(job["test"], "<test>", "exec"), namespace)
    namespace[name] = remote
    namespace["check"](remote)
    # A program that has ended, or answers ahead, does not know this number.
    number = secrets.token_hex(16)
    if ask(link, {"echo": number}) != number:
        raise NoAnswerError("the program did not answer the last question")


def remote_function(name: str, link: socket.socket) -> Callable[..., Any]:
    """A function that is computed in another process: plain data there and back."""

    def call(*arguments: Any, **named: Any) -> Any:
        encoded = [messages.encode(part) for part in (arguments, named)]
        request = {"function": name, "arguments": encoded[0], "named": encoded[1]}
        return ask(link, request)

    return call


def ask(link: socket.socket, request: Job) -> Any:
    """The value of a reply. Raises NoAnswerError, or the exception that the function raised."""
    try:
        messages.send(link, request)
        reply = messages.receive(link)
        if "value" in reply:
            return messages.decode(reply["value"])
        kind, text = map(str, reply["error"])
    except ConnectionError:
        raise NoAnswerError("the other side has ended") from None
    except (MessageError, OSError, TypeError, ValueError, KeyError) as error:
        raise NoAnswerError(str(error)) from None
    raised = getattr(builtins, kind, None)
    if not (isinstance(raised, type) and issubclass(raised, Exception)):
        raise RuntimeError(text)
    if issubclass(raised, UnicodeError | ExceptionGroup):  # made of more than a text
        raise RuntimeError(text)
    raise raised(text)
