"""`python -m weavenet.lab`: the lab from a checkout."""

from weavenet.lab.cli import main

main(prog_name="lab")
