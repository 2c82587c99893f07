"""What each command does: `async def run(options, session) -> int`, the exit status, named by `arguments`."""
