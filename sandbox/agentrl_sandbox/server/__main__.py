"""Serves a sandbox: `python -m agentrl_sandbox.server`."""

from .service import main

raise SystemExit(main())
