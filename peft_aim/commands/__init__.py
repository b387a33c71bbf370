"""The commands of ``peft-aim``, one file each: ``add`` declares the arguments, ``run`` runs the command.

Imports are deferred to ``run``, so that ``--help`` and the other commands work without the extra "video".
"""
