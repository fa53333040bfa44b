"""Serves a sandbox: `python -m agentrl_sandbox.server`."""

from .hosting import main

raise SystemExit(main())
