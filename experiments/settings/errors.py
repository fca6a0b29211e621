"""The one exception that the command line turns into a single line of text."""


class UserError(Exception):
    """Something that the user can put right: a name, an option, a file, a setting.

    The message is one line that says what is wrong, and with which value. Programs catch this
    class alone, print the line to stderr and exit with status 2; any other exception is a fault
    of the code and keeps its traceback.
    """
