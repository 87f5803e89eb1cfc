"""Expected errors; each class is one exit code of the command line."""


class BatchPredictError(Exception):
    """What is wrong, where, and what to do, in one line; shown without a traceback."""

    exit_code = 1


class UsageError(BatchPredictError):
    """The command line contradicts itself."""

    exit_code = 2


class InputInvalid(BatchPredictError):
    """An input is malformed as a whole, or has more rejects than the budget allows."""

    exit_code = 65


class InputMissing(BatchPredictError):
    """An input does not exist or may not be read."""

    exit_code = 66


class Unavailable(BatchPredictError):
    """A model or store cannot be reached or may not be read."""

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
