"""The files of a run: they survive a kill at any moment, and each is written once."""
