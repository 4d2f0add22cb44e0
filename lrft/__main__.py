"""`python -m lrft`, for launchers that start a module: torchrun -m lrft train recipe.yaml."""

from lrft.cli.main import main

main()
