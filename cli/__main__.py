"""`python -m serverless_triton.cli`: the command without its entry point."""

from serverless_triton.cli.main import main

main()
