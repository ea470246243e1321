"""Exception class of the package."""


class CipherDMError(Exception):
    """Something a user can act on went wrong.

    Every error that this package raises on purpose is of this class. The message names the thing that is wrong and the
    remedy; by the time it is raised nothing is left running and no file is left half written.
    """
