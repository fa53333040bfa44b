"""Environments in processes of their own: what leaks, blocks or dies there takes nothing with it."""

from .environment import Isolation, isolated
from .host import end_hosts

__all__ = ["Isolation", "end_hosts", "isolated"]
