"""`python -m agentrl_sandbox.server`: serve sessions of a sandbox over HTTP."""

from agentrl_sandbox.server.hosting import main

if __name__ == "__main__":
    raise SystemExit(main())
