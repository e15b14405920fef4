"""The one kind of error that bad input raises; the command line turns it into exit code 2."""


class InputError(ValueError):
    """Input that cannot be used.

    The message says what must hold, what was found and where, and what to do next, in that
    order. Everything that a user can cause by a file, an option or an argument raises this;
    any other exception is a defect of stillpet.
    """
