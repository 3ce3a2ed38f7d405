"""``python -m fedcurv.simulations`` is ``fedcurv-simulate``."""

from fedcurv.simulations.commands.simulate import main

main()
