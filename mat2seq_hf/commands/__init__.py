"""The commands of ``mat2seq``, one module each.

A module has ``SUMMARY`` and ``EXAMPLES`` (help texts), ``add_arguments(parser)`` and ``run(args)``, which returns the
exit code. Heavy imports stand inside ``run``, so that ``mat2seq --help`` answers at once.
"""
