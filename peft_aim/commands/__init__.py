"""The commands of ``peft-aim``, a file each: ``add`` says what it takes, ``run`` does it.

What a command needs is imported when it runs: the extra "video" need not be there for the others, nor for ``--help``.
"""
