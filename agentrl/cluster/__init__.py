"""The machines a run uses: their devices, memory, CPU time and event loop."""
