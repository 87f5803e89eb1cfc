"""Expected errors; each class is one exit code of the command line."""

# Of a message: names in a stranger's file may be as long as the file.
_MOST = 2000
# For `str.translate`: C0 and C1 controls, DEL, Unicode's ends of lines and marks that turn the text
# after them around, as repr spells them: a file's or column's name must neither forge a line nor
# reach the terminal.
CONTROLS = {
    code: repr(chr(code))[1:-1]
    for code in (*range(32), *range(127, 160), *range(0x2028, 0x202F), *range(0x2066, 0x206A))
}


class BatchPredictError(Exception):
    """What is wrong, where, and what to do, in one line; shown without a traceback."""

    exit_code = 1

    def __str__(self) -> str:
        text = super().__str__().translate(CONTROLS)
        text = text.encode(errors="backslashreplace").decode()  # halves of surrogate pairs
        return text if len(text) <= _MOST else f"{text[: _MOST // 2]} … {text[-_MOST // 2 :]}"


class UsageError(BatchPredictError):
    """The command line contradicts itself."""

    exit_code = 2


class InputInvalid(BatchPredictError):
    """An input is malformed as a whole, or has more rejects than the budget allows."""

    exit_code = 65


class InputMissing(BatchPredictError):
    """An input does not exist or may not be read."""

    exit_code = 66


class InputUnfinished(InputMissing):
    """An input may still be being written."""

    exit_code = 75


class Unavailable(BatchPredictError):
    """A model, store or cluster cannot be reached or may not be read."""

    exit_code = 69


class OutputNotCreatable(BatchPredictError):
    """An output cannot be created, or exists and must not be replaced."""

    exit_code = 73


class OutputWriteFailed(BatchPredictError):
    """An output could not be written to its end (disk full, pipe closed)."""

    exit_code = 74


class TryAgain(BatchPredictError):
    """Nothing is wrong with the job; the same command may succeed later."""

    exit_code = 75


class ConfigInvalid(BatchPredictError):
    """A model, a job file or the environment is wrong."""

    exit_code = 78


class Terminated(BaseException):
    """SIGTERM arrived. Not an Exception: nothing that handles errors may swallow it."""

    exit_code = 143


def exit_code_of(error: BaseException) -> int:
    """The exit code an exception ends in: an expected one's own, 130 for Ctrl-C, 70 for a bug."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    code = getattr(error, "exit_code", 70)
    return code if isinstance(code, int) else 70


def message_of(error: BaseException) -> str:
    """What a receipt says of an error; the kind where it is none of ours."""
    if isinstance(error, BatchPredictError | Terminated):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return f"{type(error).__name__}: {error}"
