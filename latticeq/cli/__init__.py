"""The ``latticeq`` command, one file a verb."""
