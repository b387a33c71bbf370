"""The commands of ``peft-aim``, one module each: ``add`` declares the arguments, ``run`` runs the command.

``run`` imports what it needs itself, so that ``--help`` and the other commands work without the extra "video".
"""
